//! What else on this host drops forwarded packets. Only looked at: the rules of others are theirs.

use super::rules::{listing, objects};
use super::{NatError, TABLE};

/// A chain of somebody else's that drops what it does not know, our forwarded packets among it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForwardBlock {
    /// Its family: `ip` or `inet`.
    pub family: String,
    /// Its table.
    pub table: String,
    /// Its name.
    pub chain: String,
    /// Its table has Docker's chain for the user's own rules, `DOCKER-USER`: there a rule for `cbx+` would help.
    pub docker_user: bool,
}

/// Every chain that drops forwarded IPv4 packets by its policy. A rule deep in a chain may drop as well: only a packet proves passage.
pub fn forward_blocks() -> Result<Vec<ForwardBlock>, NatError> {
    let chains = listing(&["-j", "list", "chains"])?;
    let text = |chain: &serde_json::Value, key: &str| chain[key].as_str().unwrap_or_default().to_owned();
    let docker: Vec<String> = objects(&chains, "chain")
        .filter(|chain| chain["name"] == "DOCKER-USER" && chain["family"] == "ip")
        .map(|chain| text(chain, "table"))
        .collect();
    Ok(objects(&chains, "chain")
        .filter(|chain| chain["hook"] == "forward" && chain["policy"] == "drop")
        .filter(|chain| chain["family"] == "ip" || chain["family"] == "inet")
        .filter(|chain| !text(chain, "table").starts_with(TABLE))
        .map(|chain| ForwardBlock {
            family: text(chain, "family"),
            table: text(chain, "table"),
            chain: text(chain, "name"),
            docker_user: docker.contains(&text(chain, "table")),
        })
        .collect())
}
