//! The network of a lease in real namespaces, with real nft and the CNI plugins of Debian (rung 3: root, no
//! VM).
//!
//! Every test runs inside a "host" namespace of its own; namespaces, links and tables of the real host are
//! never touched.

#[cfg(test)]
mod cni;
#[cfg(test)]
mod dns;
#[cfg(test)]
mod lab;
#[cfg(test)]
mod nat;
#[cfg(test)]
mod passage;
#[cfg(test)]
mod policy;
