//! This host: what it has, what it lacks, and how it is prepared: doctor, set-up, images, the KVM probe.

pub mod doctor;
pub mod images;
pub mod pool;
pub mod prepare;
pub mod probe;
pub mod proof;
pub mod setup;
pub mod unowned;
pub mod volumes;
pub mod warm;
