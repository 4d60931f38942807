//! Keys with a fixed set of values: their accepted spellings, and the canonical names.
//!
//! Names, spellings and error messages are the Go program's. Which values a provider supports must not be
//! decided here ([`super::fit`]).

/// The keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// `provider`: any name, because only code that uses it knows the providers.
    Provider,
    /// `target`.
    Target,
    /// `windows.mode`.
    WindowsMode,
    /// `architecture`.
    Architecture,
    /// `os`.
    OsImage,
    /// `network`.
    Network,
    /// `desktopEnv`.
    DesktopEnv,
}

impl Choice {
    /// The canonical name for `text`; empty if nothing is set, `None` if it is not a valid value.
    pub fn name_of(self, text: &str) -> Option<String> {
        let text = text.trim().to_ascii_lowercase();
        let name = match (self, text.as_str()) {
            (_, "") => "",
            (Self::Provider, name)
            | (Self::Network, name @ ("auto" | "tailscale" | "public"))
            | (Self::DesktopEnv, name @ ("xfce" | "wayland" | "gnome")) => name,
            (Self::Target, "linux" | "ubuntu") => "linux",
            (Self::Target, "macos" | "mac" | "darwin" | "osx") => "macos",
            (Self::Target, "windows" | "win") => "windows",
            (Self::Target, "worker-runtime") => "worker-runtime",
            (Self::WindowsMode, "normal" | "native" | "powershell" | "ps") => "normal",
            (Self::WindowsMode, "wsl2" | "wsl") => "wsl2",
            (Self::Architecture, "amd64" | "x86_64" | "x64") => "amd64",
            (Self::Architecture, "arm64" | "aarch64") => "arm64",
            (Self::OsImage, image) => os_image(image)?,
            _ => return None,
        };
        Some(name.to_owned())
    }

    /// The canonical names, for messages.
    pub(crate) const fn names(self) -> &'static str {
        match self {
            Self::Provider => "a name",
            Self::Target => "linux, macos, windows, or worker-runtime",
            Self::WindowsMode => "normal or wsl2",
            Self::Architecture => "amd64 or arm64",
            Self::Network => "auto, tailscale, or public",
            Self::DesktopEnv => "xfce, wayland, or gnome",
            Self::OsImage => "ubuntu:26.04 or ubuntu:24.04",
        }
    }

    /// Why `found` is invalid, in the Go program's words.
    pub fn refusal(self, found: &str) -> String {
        let key = match self {
            Self::Provider => "provider",
            Self::Target => "target",
            Self::WindowsMode => "windows.mode",
            Self::Architecture => "architecture",
            Self::Network => "network",
            Self::DesktopEnv => "desktopEnv",
            Self::OsImage => {
                return format!("unsupported os {found:?}; supported: ubuntu:26.04, ubuntu:24.04");
            }
        };
        format!("{key} must be {}, found {found:?}", self.names())
    }
}

/// The image that `text` selects: `-` may be written for `:`, `_` for `.`, and both may be left out.
fn os_image(text: &str) -> Option<&'static str> {
    match text.replace('_', ".").replace('-', ":").as_str() {
        "ubuntu:24.04" | "ubuntu:2404" | "ubuntu2404" => Some("ubuntu:24.04"),
        "ubuntu:26.04" | "ubuntu:2604" | "ubuntu2604" => Some("ubuntu:26.04"),
        _ => None,
    }
}
