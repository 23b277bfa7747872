//! What the agent that this design comes from did on this machine, in requests per second: the measure for how much
//! faster this one has to be.

/// Rates with 10 and with 10,000 entries.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Go {
    few: [f64; 2],
    many: [f64; 2],
}

/// `GET /v1/state`.
pub(crate) const SUMMARY: Go = Go { few: [20_776.0, 31_018.0], many: [338.0, 307.0] };

/// `GET /v1/state/data/{key}`.
pub(crate) const ENTRY: Go = Go { few: [19_742.0, 43_267.0], many: [27_737.0, 47_697.0] };

/// `GET /v1/state/secrets/{key}`.
pub(crate) const SECRET: Go = Go { few: [4_176.0, 3_800.0], many: [4_311.0, 4_440.0] };

/// `PUT /v1/state/report/{key}`.
pub(crate) const PUT: Go = Go { few: [1_699.0, 1_572.0], many: [1_774.0, 1_704.0] };

impl Go {
    /// The rate with so many entries and connections, if it was measured.
    pub(crate) fn rate(self, entries: usize, connections: usize) -> Option<f64> {
        let rates = match entries {
            10 => self.few,
            10_000 => self.many,
            _ => return None,
        };
        match connections {
            1 => Some(rates[0]),
            64 => Some(rates[1]),
            _ => None,
        }
    }
}
