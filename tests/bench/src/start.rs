//! From the start of both processes to the first answer, by a program within the host that starts nothing else before:
//! what enters the host takes longer than a start.

use std::fs;
use std::io;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use plexd_e2e::median;

use crate::exchange::fetch;
use crate::findings::{Findings, Target, say};
use crate::scene::{CONFIG, SOCKET, Scene};

/// The argument that makes the program the one that times.
pub(crate) const WORD: &str = "start";

/// Starts of each kind.
const STARTS: usize = 20;

/// How long a start may take.
const DEADLINE: Duration = Duration::from_secs(30);

/// Between two attempts: what it takes of the processors is little, and of the figure as well.
const PAUSE: Duration = Duration::from_micros(200);

/// Measures starts without the control plane and with it.
pub(crate) fn measure(scene: &mut Scene, findings: &mut Findings) {
    let length = fetch(&scene.socket(), "/v1/state").expect("the summary").body.len();
    scene.stop();
    scene.control_plane.stop();
    let down = starts(scene, "down", length, findings);
    scene.control_plane.start_again();
    let up = starts(scene, "up", length, findings);
    if matches!(scene.size, 10 | 10_000) {
        findings.line(&format!("api.start_ms.{}", scene.size), down.max(up));
    }
    scene.node.start();
    scene.wait_complete();
}

fn starts(scene: &Scene, control_plane: &str, length: usize, findings: &mut Findings) -> f64 {
    let host = scene.host();
    let programs = ["plexd-bench-api", "plexd-core", "plexd-api"].map(|name| host.program(name));
    let line = [&programs[0], WORD, &programs[1], &programs[2], CONFIG, SOCKET, &length.to_string()];
    let start = |_| {
        let text = host.run(&line).succeeded().stdout;
        text.trim().parse::<f64>().unwrap_or_else(|error| panic!("no milliseconds ({error}): {text}"))
    };
    let mut times: Vec<f64> = (0..STARTS).map(start).collect();
    times.sort_by(f64::total_cmp);
    let middle = median(times.clone());
    let size = scene.size;
    say(&format!(
        "  start    {size:>5} entries, control plane {control_plane}: {middle:.1} ms to the first answer ({:.1} to {:.1}, {STARTS} starts)",
        times[0],
        times[STARTS - 1]
    ));
    if let Some((_, most)) = [(10, 10.0), (10_000, 100.0)].into_iter().find(|(of, _)| *of == size) {
        let about = format!("start, {size} entries, control plane {control_plane}, ms");
        findings.judge(&about, middle, Target::Below(most));
    }
    middle
}

/// Starts both programs, prints after how many milliseconds the summary of `length` bytes could be read, and stops both.
pub(crate) fn time_one([core, api]: [&str; 2], config: &str, socket: &str, length: &str) {
    let length: usize = length.parse().expect("a length");
    // What the last start left would only be refused; but that takes time.
    if let Err(error) = fs::remove_file(socket) {
        assert_eq!(error.kind(), io::ErrorKind::NotFound, "cannot remove {socket}: {error}");
    }
    let began = Instant::now();
    let core = spawn(core, &["run", "--config", config]);
    let api = spawn(api, &["--config", config]);
    let taken = loop {
        let why = match fetch(Path::new(socket), "/v1/state") {
            Ok(answer) if answer.is_success() && answer.body.len() == length => break began.elapsed(),
            Ok(answer) => answer.head,
            Err(error) => error.to_string(),
        };
        assert!(began.elapsed() < DEADLINE, "no answer after {DEADLINE:?}: {why}");
        thread::sleep(PAUSE);
    };
    for mut process in [api, core] {
        let pid = i32::try_from(process.id()).expect("a process id");
        kill(Pid::from_raw(pid), Signal::SIGTERM).expect("it runs");
        process.wait().expect("it ends");
    }
    say(&format!("{:.3}", taken.as_secs_f64() * 1e3));
}

fn spawn(program: &str, arguments: &[&str]) -> Child {
    let child = Command::new(program).args(arguments).stdin(Stdio::null()).spawn();
    child.unwrap_or_else(|error| panic!("cannot start {program}: {error}"))
}
