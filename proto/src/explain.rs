//! An error as one line for a person: the whole chain of causes, none of them twice.

use std::error::Error;

/// Returns what went wrong and why, in one line. Many errors tell their cause in their own text; such a cause is not
/// said again.
pub fn explain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let own = error.to_string();
        if !text.contains(&own) {
            text = format!("{text}: {own}");
        }
        cause = error.source();
    }
    text.lines().map(str::trim).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    enum Failure {
        #[error("cannot read /x: {source}; name another")]
        Told { source: io::Error },
        #[error("cannot start")]
        Untold { source: Box<Failure> },
    }

    #[test]
    fn every_cause_is_told_once() {
        let told = || Failure::Told { source: io::Error::other("no such file") };
        assert_eq!(explain(&told()), "cannot read /x: no such file; name another");
        let untold = Failure::Untold { source: Box::new(told()) };
        assert_eq!(explain(&untold), "cannot start: cannot read /x: no such file; name another");
    }

    #[test]
    fn it_is_one_line() {
        assert_eq!(explain(&io::Error::other("two\n  lines")), "two lines");
    }
}
