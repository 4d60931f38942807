//! The network modes of a lease, and the choice for `auto`.
//!
//! The same type is used from the settings to the record, so that doctor and a lease cannot choose
//! differently. It must never inspect the host: facts about it are arguments.

use serde::{Deserialize, Serialize};

/// A network mode. It is in lower case in requests, labels and output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NetworkMode {
    /// Through the CNI plugins of the host.
    Cni,
    /// Built-in NAT: a veth pair and address translation.
    Nat,
}

impl NetworkMode {
    /// Both modes.
    pub const ALL: [Self; 2] = [Self::Cni, Self::Nat];

    /// The mode's name in settings, labels and output.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cni => "cni",
            Self::Nat => "nat",
        }
    }

    /// The mode called `name`.
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mode| mode.name() == name)
    }

    /// The mode of a lease with the setting `wanted`; `None` is `auto`: CNI if the configured network loads,
    /// otherwise NAT.
    pub fn choose(wanted: Option<Self>, cni_loads: impl FnOnce() -> bool) -> Self {
        match wanted {
            Some(mode) => mode,
            None if cni_loads() => Self::Cni,
            None => Self::Nat,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mode_has_one_name_everywhere_and_no_other_is_one() {
        for mode in NetworkMode::ALL {
            let json = format!("\"{}\"", mode.name());
            assert_eq!(serde_json::to_string(&mode).unwrap(), json);
            assert_eq!(serde_json::from_str::<NetworkMode>(&json).unwrap(), mode);
            assert_eq!(NetworkMode::by_name(mode.name()), Some(mode));
        }
        for odd in ["", "auto", "CNI", "Nat", " nat", "nat ", "bridge"] {
            assert_eq!(NetworkMode::by_name(odd), None, "{odd:?}");
            let json = format!("{odd:?}");
            assert!(serde_json::from_str::<NetworkMode>(&json).is_err(), "{odd:?}");
        }
    }

    #[test]
    fn only_auto_asks_what_is_there() {
        for mode in NetworkMode::ALL {
            let asked = || unreachable!("{mode:?} was set");
            assert_eq!(NetworkMode::choose(Some(mode), asked), mode);
        }
        assert_eq!(NetworkMode::choose(None, || true), NetworkMode::Cni);
        assert_eq!(NetworkMode::choose(None, || false), NetworkMode::Nat);
    }
}
