//! plexd-core: the privileged half of plexd.

fn main() {}
