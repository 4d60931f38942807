//! How a lease gets its outer address: the modes there are, and which one `auto` means.
//!
//! There is one type for it from the settings to the record, so that doctor and a lease cannot choose differently. It must
//! never look at the host: what is there is an argument.

use serde::{Deserialize, Serialize};

/// How a lease gets its outer address. A request carries it in lower case, as labels and output spell it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NetworkMode {
    /// From the CNI plugins of the host.
    Cni,
    /// Built in: a veth pair and address translation.
    Nat,
}

impl NetworkMode {
    /// Both modes.
    pub const ALL: [Self; 2] = [Self::Cni, Self::Nat];

    /// The mode's name as settings, labels and output spell it.
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

    /// The mode of a lease for which `wanted` was set; `None` is `auto`: CNI where the configured network loads, else built in.
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
