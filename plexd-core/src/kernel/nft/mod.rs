//! nftables over netlink, without a C library and without `nft`: all of the table `inet plexd` is replaced in one transaction,
//! and read back whole. No other table is changed.
//!
//! - `wire`: bytes; `encode`, `expression`, `maps`, `classes`, `layout`, `data`: our table as messages
//! - `socket`: requests and transactions; `dump`, `compare`: what is there; `carry`: what was counted; [`Monitor`]: whether
//!   others changed it

mod carry;
mod classes;
mod compare;
mod data;
mod dump;
mod encode;
mod expression;
mod layout;
mod maps;
mod monitor;
mod numbers;
mod socket;
mod wire;

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use nix::libc;

use self::carry::Carried;
use self::dump::Dump;
use self::socket::{Channel, Refusal, Transaction};
use super::{Applied, Firewall, KernelError, ObservedTable};
use crate::policy::Table;
use crate::policy::table::Expr;

pub use monitor::Monitor;

/// nftables in the network namespace in which it was made. Needs `CAP_NET_ADMIN`, and no more.
#[derive(Clone)]
pub struct NfTables {
    state: Arc<Mutex<State>>,
}

struct State {
    channel: Channel,
    /// Whether the table in place had to do without its logging rules.
    applied: Applied,
    /// What was there last, as far as this process knows: what the counters in it are for.
    known: Option<Table>,
}

/// How often to try again to replace what is in the table when somebody changes it meanwhile.
const ATTEMPTS: usize = 3;

impl NfTables {
    /// Opens the socket in the network namespace of the calling thread.
    ///
    /// # Errors
    /// The kernel has no nftables, or the process may not use them.
    pub fn new() -> Result<Self, KernelError> {
        let channel = Channel::open().map_err(|error| failure("open", "nftables", error))?;
        Ok(Self { state: Arc::new(Mutex::new(State { channel, applied: Applied::Complete, known: None })) })
    }

    /// Subscribes to changes of the table by others, in the network namespace of the calling thread. To be called within
    /// a tokio runtime.
    ///
    /// # Errors
    /// The kernel or the runtime refuses another socket.
    pub fn monitor(&self) -> Result<Monitor, KernelError> {
        let own = self.state.lock().unwrap_or_else(PoisonError::into_inner).channel.port();
        Monitor::open(own).map_err(|error| failure("watch", "nftables", error))
    }

    /// Runs blocking work on the socket. One request at a time; a cancelled caller's request is finished all the same.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut State) -> Result<T, KernelError> + Send + 'static,
    ) -> Result<T, KernelError> {
        let state = Arc::clone(&self.state);
        let work = move || work(&mut state.lock().unwrap_or_else(PoisonError::into_inner));
        let done = tokio::task::spawn_blocking(work).await;
        done.unwrap_or_else(|error| Err(failure("use", "nftables", io::Error::other(error))))
    }
}

#[async_trait]
impl Firewall for NfTables {
    async fn observe(&self, expected: &Table) -> Result<ObservedTable, KernelError> {
        let expected = expected.clone();
        self.blocking(move |state| state.observe(expected)).await
    }

    async fn replace(&self, table: &Table) -> Result<Applied, KernelError> {
        let table = table.clone();
        self.blocking(move |state| state.replace(table)).await
    }

    async fn remove(&self) -> Result<(), KernelError> {
        self.blocking(State::remove).await
    }
}

/// What a message of a transaction is about.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Subject {
    Table,
    Counter(String),
    Chain(String),
    Map(String),
    Entries(String),
    Rule {
        chain: String,
        number: usize,
        logs: bool,
    },
    /// What somebody added, by its name.
    Added(String),
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Table => write!(f, "table inet {}", Table::NAME),
            Self::Counter(name) => write!(f, "counter {name} of table inet {}", Table::NAME),
            Self::Chain(name) => write!(f, "chain {name} of table inet {}", Table::NAME),
            Self::Map(name) => write!(f, "map {name} of table inet {}", Table::NAME),
            Self::Entries(name) => write!(f, "entries of map {name} of table inet {}", Table::NAME),
            Self::Rule { chain, number, .. } => {
                write!(f, "rule {number} of chain {chain} of table inet {}", Table::NAME)
            }
            Self::Added(name) => write!(f, "{name}, which was added to table inet {}", Table::NAME),
        }
    }
}

impl State {
    fn observe(&mut self, expected: Table) -> Result<ObservedTable, KernelError> {
        let dump = Dump::read(&mut self.channel).map_err(|error| failure("read", Subject::Table, error))?;
        let observed = match (dump, self.applied) {
            (None, _) => ObservedTable::Absent,
            (Some(dump), Applied::Complete) => dump.compare(&expected),
            (Some(dump), Applied::WithoutLog) => dump.compare(&expected.without_log()),
        };
        if let ObservedTable::Same { .. } = observed {
            self.known = Some(expected);
        }
        Ok(observed)
    }

    fn replace(&mut self, table: Table) -> Result<Applied, KernelError> {
        self.applied = match self.put(&table) {
            Ok(()) => Applied::Complete,
            Err(refusal) if lacks_log(&refusal) => {
                self.put(&table.without_log()).map_err(|refusal| refused("replace", refusal))?;
                Applied::WithoutLog
            }
            Err(refusal) => return Err(refused("replace", refusal)),
        };
        self.known = Some(table);
        Ok(self.applied)
    }

    /// Replaces what is there in one transaction.
    fn put(&mut self, table: &Table) -> Result<(), Refusal<Subject>> {
        let mut old = self.read();
        for _ in 0..ATTEMPTS {
            if !old.has_frame_of(table) {
                break;
            }
            match self.put_in_place(table, &old) {
                Err(refusal) if !lacks_log(&refusal) => {
                    let now = self.read();
                    // Unless somebody changed it since it was read, it would be refused again.
                    if now.frame.is_still(&old.frame) {
                        break;
                    }
                    old = now;
                }
                done => return done,
            }
        }
        self.put_anew(table, &old)
    }

    /// Reads the table; nothing if it cannot be read, as to have the policy is worth more than what was counted.
    fn read(&mut self) -> Dump {
        Dump::read(&mut self.channel).ok().flatten().unwrap_or_default()
    }

    /// Replaces what is in the table, its maps, rules and the chains that rules lead to, removes what others put there, and
    /// leaves the chains that the kernel calls. To replace those as well would leave a gap for a packet that is being judged
    /// at that moment: the kernel calls the new chain before the old one, and decides for each which of its rules are in
    /// force. A packet that comes to the new chain before the change and to the old one after it finds no rules in either.
    fn put_in_place(&mut self, table: &Table, old: &Dump) -> Result<(), Refusal<Subject>> {
        let mut transaction = self.channel.transaction();
        add(&mut transaction, Subject::Table, encode::no_rules());
        for map in old.maps() {
            add(&mut transaction, Subject::Map(map.clone()), encode::no_map(map));
        }
        for chain in old.passing_chains(table) {
            add(&mut transaction, Subject::Chain(chain.clone()), encode::no_chain(chain));
        }
        for (kind, name) in old.added_objects(table) {
            add(&mut transaction, Subject::Added(name.clone()), encode::no_object(*kind, name));
        }
        for flowtable in old.flowtables() {
            add(&mut transaction, Subject::Added(flowtable.clone()), encode::no_flowtable(flowtable));
        }
        for chain in table.chains.iter().filter(|chain| chain.hook.is_none()) {
            add(&mut transaction, Subject::Chain(chain.name.clone()), encode::chain(chain));
        }
        add_contents(&mut transaction, table, &mut Carried::new(old, self.known.as_ref(), table));
        self.channel.commit(transaction)
    }

    /// Replaces the table: made if it was not there, so that it can be deleted, and made anew.
    fn put_anew(&mut self, table: &Table, old: &Dump) -> Result<(), Refusal<Subject>> {
        let mut carried = Carried::new(old, self.known.as_ref(), table);
        let mut transaction = self.channel.transaction();
        add(&mut transaction, Subject::Table, encode::table());
        add(&mut transaction, Subject::Table, encode::no_table());
        add(&mut transaction, Subject::Table, encode::table());
        for counter in &table.counters {
            let request = encode::counter(counter, carried.named(counter));
            add(&mut transaction, Subject::Counter(counter.clone()), request);
        }
        // Those that stay when the rest is replaced come first, so that a table is listed alike whichever way it came.
        let (called, regular): (Vec<_>, Vec<_>) = table.chains.iter().partition(|chain| chain.hook.is_some());
        for chain in called.into_iter().chain(regular) {
            add(&mut transaction, Subject::Chain(chain.name.clone()), encode::chain(chain));
        }
        add_contents(&mut transaction, table, &mut carried);
        self.channel.commit(transaction)
    }

    fn remove(&mut self) -> Result<(), KernelError> {
        self.known = None;
        let mut transaction = self.channel.transaction();
        add(&mut transaction, Subject::Table, encode::no_table());
        match self.channel.commit(transaction) {
            Err(refusal) if refusal.errno() != Some(libc::ENOENT) => Err(refused("remove", refusal)),
            _ => Ok(()),
        }
    }
}

fn add(
    transaction: &mut Transaction<Subject>,
    subject: Subject,
    (message, flags, attributes): encode::Request,
) {
    transaction.add(subject, message, flags, &attributes);
}

/// Adds maps and rules, for chains that are there or were added.
fn add_contents<'a>(transaction: &mut Transaction<Subject>, table: &'a Table, carried: &mut Carried<'a>) {
    for (map, id) in maps::of(table).zip(1..) {
        let name = map.name.to_owned();
        add(transaction, Subject::Map(name.clone()), encode::map(&map, id));
        for request in encode::elements(map, id, table, carried) {
            add(transaction, Subject::Entries(name.clone()), request);
        }
    }
    for chain in &table.chains {
        for (rule, number) in chain.rules.iter().zip(1..) {
            let mut expressions = expression::expressions(table, rule);
            let counts_for = rule.iter().find_map(|expr| match expr {
                Expr::CountRule(position) => Some(*position),
                _ => None,
            });
            if let Some(position) = counts_for {
                expression::begin_with(&mut expressions, carried.rule(table, position));
            }
            let logs = rule.iter().any(|expr| matches!(expr, Expr::Log { .. }));
            let subject = Subject::Rule { chain: chain.name.clone(), number, logs };
            add(transaction, subject, encode::rule(&chain.name, &expressions));
        }
    }
}

/// Returns whether the kernel refused because it has no module for logging, or for its rate limit.
fn lacks_log(refusal: &Refusal<Subject>) -> bool {
    matches!(refusal.subject, Some(Subject::Rule { logs: true, .. }))
        && matches!(refusal.errno(), Some(libc::ENOENT | libc::EOPNOTSUPP))
}

fn failure(operation: &'static str, object: impl fmt::Display, source: io::Error) -> KernelError {
    KernelError::new(operation, object, source)
}

fn refused(operation: &'static str, refusal: Refusal<Subject>) -> KernelError {
    failure(operation, refusal.subject.unwrap_or(Subject::Table), refusal.source)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_missing_module_for_logging_is_done_without() {
        let refusal = |logs, errno| Refusal {
            subject: Some(Subject::Rule { chain: "deny".to_owned(), number: 1, logs }),
            source: io::Error::from_raw_os_error(errno),
        };
        assert!(lacks_log(&refusal(true, libc::ENOENT)));
        assert!(lacks_log(&refusal(true, libc::EOPNOTSUPP)));
        assert!(!lacks_log(&refusal(true, libc::EPERM)));
        assert!(!lacks_log(&refusal(false, libc::ENOENT)));
        assert!(!lacks_log(&Refusal { subject: None, source: io::ErrorKind::NotFound.into() }));
    }
}
