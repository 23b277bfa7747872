//! What a process keeps of memory that it does not use. Of what is freed, glibc's allocator returns little to the system by
//! itself, as most of what a large state needs for a moment is freed in small parts between others; of other allocators
//! nothing is asked. Of the program's own code, all that a start needed stays mapped.

use std::fs;

use nix::libc;

/// Has the allocator keep little of what is freed. To be called before threads are started, as each gets an area of its
/// own otherwise.
pub fn keep_little() {
    #[cfg(target_env = "gnu")]
    for (setting, value) in [
        // Areas that threads allocate from: what one of them has freed no other takes. Two threads run tasks.
        (libc::M_ARENA_MAX, 2),
        // Free memory at the end of an area from which on it is returned at once, in bytes.
        (libc::M_TRIM_THRESHOLD, 1024 * 1024),
        // Size from which on memory comes from the system and goes back there when it is freed, in bytes. The allocator
        // would raise it, up to 32 MiB, with each such block that is freed, and with it what it keeps.
        (libc::M_MMAP_THRESHOLD, 256 * 1024),
    ] {
        // SAFETY: takes two numbers, both within what `mallopt(3)` allows, and may be called at any time from any
        // thread: it locks the allocator. What it refuses stays as it was, which is no error here.
        unsafe { libc::mallopt(setting, value) };
    }
}

/// Returns to the system what is free, to whole pages. Takes some milliseconds after tens of megabytes were freed, during
/// which threads that allocate may wait; next to nothing where there is nothing to return.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes a number, of which any is valid, and touches no memory but what is free; it locks the allocator and
    // may be called at any time from any thread (`malloc_trim(3)`).
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Unmaps the program's code and constants; what is in use comes back from the system's cache when it is. For the end of a
/// start, most of whose code is never needed again.
pub fn let_go_of_code() {
    let here = let_go_of_code as *const () as usize;
    // Without /proc nothing is let go of.
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let mappings: Vec<Mapping<'_>> = maps.lines().filter_map(Mapping::parse).collect();
    let Some(code) = mappings.iter().find(|it| it.is_code() && (it.start..it.end).contains(&here)) else {
        return;
    };
    for part in mappings.iter().filter(|it| it.file == code.file && (it.is_code() || it.is_beginning())) {
        let address = std::ptr::with_exposed_provenance_mut(part.start);
        // SAFETY: the range is a mapping of this program's own file, as this function is in one of them: it is there for
        // the life of the process. It is private and not writable, and either code or the beginning of the file, neither of
        // which the loader relocates (that would take a mapping that is writable at first, and such begin later in the
        // file): its pages are those of the file and nothing that the process wrote, and are read from there again by
        // whatever thread runs into them. If it is refused, it stays.
        unsafe { libc::madvise(address, part.end - part.start, libc::MADV_DONTNEED) };
    }
}

/// A part of a file in memory.
#[derive(Debug, PartialEq, Eq)]
struct Mapping<'a> {
    start: usize,
    end: usize,
    access: &'a str,
    offset: &'a str,
    /// Device and inode.
    file: (&'a str, &'a str),
}

impl<'a> Mapping<'a> {
    /// Parses a line of `/proc/self/maps`; `None` if it is of no file.
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split_ascii_whitespace();
        let (start, end) = fields.next()?.split_once('-')?;
        let address = |text| usize::from_str_radix(text, 16).ok();
        let (access, offset, file) = (fields.next()?, fields.next()?, (fields.next()?, fields.next()?));
        let mapping = Self { start: address(start)?, end: address(end)?, access, offset, file };
        (file.1 != "0").then_some(mapping)
    }

    fn is_code(&self) -> bool {
        self.access == "r-xp"
    }

    fn is_beginning(&self) -> bool {
        self.access == "r--p" && self.offset.bytes().all(|digit| digit == b'0')
    }
}

#[cfg(all(test, target_env = "gnu"))]
mod tests {
    use super::*;

    /// Memory of this process that is in use and nobody else's, in KiB.
    fn private() -> u64 {
        let text = std::fs::read_to_string("/proc/self/smaps_rollup").expect("Linux has it");
        let fields = text.lines().filter(|line| line.starts_with("Private_Dirty:"));
        fields.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).sum()
    }

    #[test]
    fn what_was_freed_between_what_stays_goes_back() {
        let mut blocks: Vec<Option<Box<[u8]>>> = (0..20_000).map(|_| Some(vec![1; 1000].into())).collect();
        // One of each hundred stays.
        blocks.iter_mut().enumerate().filter(|(n, _)| n % 100 != 0).for_each(|(_, block)| *block = None);
        let before = private();
        give_back();
        let after = private();
        assert!(after + 10_000 < before, "{before} KiB before, {after} KiB after");
        assert_eq!(blocks.iter().flatten().count(), 200);
    }

    #[test]
    fn code_and_the_beginning_are_found_and_the_program_runs_on_without_them() {
        let line = "5590-55a0 r-xp 002d9000 fe:00 821493                     /usr/bin/plexd-core (deleted)";
        let code = Mapping::parse(line).expect("of a file");
        assert_eq!((code.start, code.end, code.file), (0x5590, 0x55a0, ("fe:00", "821493")));
        assert!(code.is_code() && !code.is_beginning());
        for (line, is_beginning) in [
            ("5580-5590 r--p 00000000 fe:00 821493 /usr/bin/plexd-core", true),
            ("5580-5590 r--p 00e92000 fe:00 821493 /usr/bin/plexd-core", false),
            ("5580-5590 rw-p 00000000 fe:00 821493 /usr/bin/plexd-core", false),
        ] {
            let mapping = Mapping::parse(line).expect("of a file");
            assert!(!mapping.is_code() && mapping.is_beginning() == is_beginning, "{line}");
        }
        for other in ["5590-55a0 rwxp 00000000 00:00 0", "5590", ""] {
            assert_eq!(Mapping::parse(other), None, "{other}");
        }
        let_go_of_code();
        assert_eq!((1..=10).map(|n| n.to_string()).collect::<String>(), "12345678910");
    }
}
