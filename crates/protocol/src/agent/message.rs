//! The messages of the agent channel: CBOR maps with named fields. Fields may be added with a
//! default (a new minor); nothing is renamed, removed or given another meaning within a major.

use banger_model::{ByteString, ErrorCode};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::ProtocolVersion;

/// What the host asks for when it opens a stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// First on every session. Answer: [`Reply::Hello`].
    Hello(HostHello),
    /// Run a command. In: stdin. Out, Err: its output. Messages: [`Control`] in;
    /// [`Reply::Started`], then [`Reply::Exited`] out. When the stream is reset, or the session
    /// ends, the process group gets SIGHUP and, two seconds later, SIGKILL.
    Exec(ExecSpec),
    /// Unpack a tar stream (In lane) below a directory. Answer: [`Reply::Done`].
    Unpack(UnpackSpec),
    /// Copy a workspace in, or bring one up to date (In lane: [`CopyIn::remove_bytes`] of paths to remove, each ended
    /// by a NUL, then a tar stream). Answer: [`Reply::Done`].
    CopyIn(CopyIn),
    /// Tell what the guest did at some paths of a workspace (In lane: the paths, each ended by a NUL); those that were
    /// touched come as [`super::touched`] records (Out lane). Answer: [`Reply::Compared`].
    Compare(CompareSpec),
    /// Mount a directory read-only where it is. Answer: [`Reply::Done`].
    Protect {
        /// An absolute path.
        path: ByteString,
    },
    /// Send a file or directory as a tar stream (Out lane). Answer: [`Reply::Done`].
    Pack {
        /// An absolute path.
        path: ByteString,
    },
    /// Compare a workspace with a base listing (In lane: `git ls-tree -r -z`); the differences
    /// come as [`super::scan`] records (Out lane). Answer: [`Reply::Scanned`].
    Scan(ScanSpec),
    /// Step the wall clock. Answer: [`Reply::Done`].
    SetTime {
        /// Nanoseconds since the Unix epoch.
        unix_ns: i64,
    },
    /// Credit fresh random bytes to the kernel's pool. Answer: [`Reply::Done`].
    AddEntropy {
        /// At most 512 bytes.
        #[serde(with = "serde_bytes")]
        bytes: Vec<u8>,
    },
    /// Bring the network up. Answer: [`Reply::Done`].
    ConfigureNetwork(NetworkConfig),
    /// Flush all file systems. Answer: [`Reply::Done`].
    Sync,
    /// Let every process of the guest but the agent stand still, until [`Request::Thaw`] or another session's
    /// [`Request::Hello`], so that its memory can be copied. Commands that are asked for meanwhile begin after it.
    /// When this session ends first, its commands go on if the next one brings an [`Identity`], without anybody who
    /// listens; else they are hung up. Answer: [`Reply::Done`] when all stand still; after an error all go on.
    Freeze,
    /// Set the wall clock, then let all processes go on. Answer: [`Reply::Done`].
    Thaw {
        /// Nanoseconds since the Unix epoch.
        unix_ns: i64,
    },
    /// Power off or reboot in good order. Answer: [`Reply::Done`] when it has begun.
    Shutdown {
        /// Which.
        mode: ShutdownMode,
    },
}

impl Request {
    /// Its name, as it is on the wire.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Hello(_) => "hello",
            Self::Exec(_) => "exec",
            Self::Unpack(_) => "unpack",
            Self::CopyIn(_) => "copy_in",
            Self::Compare(_) => "compare",
            Self::Protect { .. } => "protect",
            Self::Pack { .. } => "pack",
            Self::Scan(_) => "scan",
            Self::SetTime { .. } => "set_time",
            Self::AddEntropy { .. } => "add_entropy",
            Self::ConfigureNetwork(_) => "configure_network",
            Self::Sync => "sync",
            Self::Freeze => "freeze",
            Self::Thaw { .. } => "thaw",
            Self::Shutdown { .. } => "shutdown",
        }
    }
}

/// What the host may say within an exec stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Control {
    /// Send a signal to the command's process group.
    Signal {
        /// The signal's number.
        signal: i32,
    },
    /// The terminal's new size.
    Resize(TermSize),
}

/// What the guest answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// To [`Request::Hello`].
    Hello(AgentHello),
    /// The command runs.
    Started {
        /// Its process id in the guest.
        pid: u32,
    },
    /// The command ended, or could not be run; all its output has been sent before this.
    Exited(ExitStatus),
    /// The request was carried out.
    Done,
    /// The scan is complete.
    Scanned(ScanSummary),
    /// What is at a workspace's path.
    Compared(Compared),
    /// The request failed.
    Error {
        /// The stable code.
        code: ErrorCode,
        /// One sentence.
        message: String,
    },
}

/// The host's introduction.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HostHello {
    /// The version the host speaks.
    pub version: ProtocolVersion,
    /// The host's wall clock, nanoseconds since the Unix epoch; the agent steps the guest's clock
    /// when it is more than 50 ms away.
    pub unix_ns: i64,
    /// Fresh random bytes for the kernel's pool.
    #[serde(with = "serde_bytes")]
    pub entropy: Vec<u8>,
    /// Since 1.2: who the guest is from now on. It has been restored from a copy of some machine's memory, and takes
    /// this on before it answers and before any of its processes goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<Identity>,
}

/// What makes a restored guest a machine of its own. Besides, its random numbers begin anew, its clock is set to
/// [`HostHello::unix_ns`], its processes go on, and then the image's hooks in `/etc/banger/restored.d` are run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The machine's name.
    pub hostname: String,
    /// A new machine id, 32 lower-case hexadecimal digits: the guest is another machine than the one that was copied,
    /// and gets ssh host keys of its own, too. Absent when it is the same one, restored from a snapshot of itself.
    pub machine_id: Option<String>,
    /// Its network; absent when it has no device for one.
    pub network: Option<NetworkConfig>,
    /// It takes this on to practise, and another in earnest later: its processes stand still on, no hook is run, and until
    /// then commands begin beside the agent.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub rehearsal: bool,
}

/// The agent's introduction.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AgentHello {
    /// The version the agent speaks.
    pub version: ProtocolVersion,
    /// The agent's build version.
    pub agent: String,
    /// What it can do: [`AgentHello::CAPABILITIES`] of its version.
    pub capabilities: Vec<String>,
    /// `uname -r`.
    pub kernel: String,
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
    /// Who is PID 1.
    pub init: InitKind,
    /// Milliseconds since the guest kernel started.
    pub uptime_ms: u64,
    /// The guest's time of day when it answered, nanoseconds since 1970: what the host told it, late by as long as its
    /// words were under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unix_ns: Option<i64>,
}

impl AgentHello {
    /// What an agent of this version can do: the names of all requests, and of what it takes besides.
    pub const CAPABILITIES: &[&str] = &[
        "hello",
        "exec",
        "unpack",
        "copy_in",
        "compare",
        "protect",
        "pack",
        "scan",
        "set_time",
        "add_entropy",
        "configure_network",
        "sync",
        "freeze",
        "thaw",
        "shutdown",
        super::LONG_REQUESTS,
    ];
}

/// Who is PID 1 in the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InitKind {
    /// The image's own init.
    Image,
    /// The agent.
    Agent,
}

/// A command to run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ExecSpec {
    /// Program and arguments as they are; no shell. Empty: the user's login shell.
    pub argv: Vec<ByteString>,
    /// Added to a clean base environment (PATH, HOME, USER, LOGNAME, SHELL, LANG, and TERM with a
    /// terminal).
    pub env: Vec<(ByteString, ByteString)>,
    /// Working directory; the user's home when absent.
    pub cwd: Option<ByteString>,
    /// User name or numeric id; root when absent.
    pub user: Option<String>,
    /// A terminal of this size; then stderr is part of stdout.
    pub tty: Option<TermSize>,
    /// Whether stdin is passed on; else it is `/dev/null`.
    pub stdin: bool,
    /// The operation this belongs to, for the agent's log lines.
    pub op_id: String,
}

impl ExecSpec {
    /// A command as root in root's home, with nothing on stdin.
    #[must_use]
    pub fn plain(argv: &[&str]) -> Self {
        Self {
            argv: argv.iter().map(|word| (*word).into()).collect(),
            env: Vec::new(),
            cwd: None,
            user: None,
            tty: None,
            stdin: false,
            op_id: String::new(),
        }
    }
}

/// A terminal's size in character cells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct TermSize {
    /// Rows.
    pub rows: u16,
    /// Columns.
    pub cols: u16,
}

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitStatus {
    /// It exited by itself.
    Code(i32),
    /// A signal ended it.
    Signal(i32),
    /// There is no such program (shells say 127).
    NotFound(String),
    /// The program cannot be executed, or its user or directory does not exist (shells say 126).
    NotExecutable(String),
}

/// Where and how to unpack a tar stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UnpackSpec {
    /// An absolute directory; made when absent, with its parents.
    pub dest: ByteString,
    /// The directory must be empty or absent; else the request fails and nothing is written.
    pub must_be_empty: bool,
}

/// A workspace to copy in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyIn {
    /// Its directory, absolute; made when absent, with those above it.
    pub root: ByteString,
    /// Bring the copy that is there up to date; nothing of it changes before everything has arrived. Else the copy is new: it
    /// appears there when it is whole.
    pub update: bool,
    /// A new copy may replace an earlier one, with all that was done in it; never anything else.
    pub replace: bool,
    /// Length of the list of paths to remove.
    pub remove_bytes: u64,
    /// Mount it read-only when it is done.
    pub readonly: bool,
}

/// What to compare.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CompareSpec {
    /// The workspace's directory.
    pub root: ByteString,
    /// A branch whose commit is asked for.
    pub branch: Option<String>,
    /// Files, relative to the workspace, that must still be there.
    pub needed: Vec<ByteString>,
    /// Index files, relative to the workspace, of which is asked what is staged. Since 1.2.
    #[serde(default)]
    pub indexes: Vec<ByteString>,
}

/// What is at a workspace's path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compared {
    /// What kind of thing.
    pub place: Place,
    /// The contents of `.git/HEAD`.
    pub head: Option<ByteString>,
    /// The commit of the branch that was asked for.
    pub branch_at: Option<String>,
    /// How many of the needed files are gone.
    pub missing: u64,
    /// Records sent.
    pub touched: u64,
    /// For each index asked for: SHA-256, in hexadecimal, of what `git ls-files -s -z` says of it. Since 1.2; an older agent
    /// says nothing.
    #[serde(default)]
    pub staged: Vec<Option<String>>,
    /// What the copy that is there calls itself: the contents of `.git/banger-copy`. Since 1.2.
    #[serde(default)]
    pub copy: Option<ByteString>,
}

/// What a directory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// Not there, or empty.
    Empty,
    /// A workspace that was copied in.
    Copy,
    /// Something else.
    Other,
}

/// What to scan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ScanSpec {
    /// The workspace's directory.
    pub root: ByteString,
    /// Hash of the object ids in the base listing: `sha1` or `sha256`.
    pub object_format: String,
    /// The scan fails when changed contents exceed this many bytes.
    pub max_bytes: u64,
    /// Send [`super::scan::RecordKind::Tick`] while there is nothing to say. Since 1.2.
    #[serde(default)]
    pub ticks: bool,
}

/// What a scan found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScanSummary {
    /// Records sent.
    pub records: u64,
    /// Bytes of contents sent.
    pub bytes: u64,
    /// Untracked repositories within the workspace: like git, a scan does not look into them.
    #[serde(default)]
    pub repositories: u64,
    /// The paths of the first few of them.
    #[serde(default)]
    pub some_repositories: Vec<ByteString>,
}

/// The guest's side of a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkConfig {
    /// The device's MAC address: `52:54:00:…`. Since 1.2 a device that has another one, which it was copied with, gets
    /// this.
    pub mac: String,
    /// IPv4 address with prefix length, such as `10.0.2.15/24`.
    pub address: String,
    /// Default gateway.
    pub gateway: String,
    /// Name servers for `/etc/resolv.conf`.
    pub dns: Vec<String>,
    /// Largest IP packet, bytes.
    pub mtu: u32,
}

/// How to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ShutdownMode {
    /// Power off.
    PowerOff,
    /// Boot again.
    Reboot,
}

/// A message as CBOR.
///
/// # Errors
/// Never for the types of this module; the serializer's sentence otherwise.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, String> {
    let mut out = Vec::new();
    ciborium::into_writer(message, &mut out).map_err(|e| e.to_string())?;
    Ok(out)
}

/// A message from CBOR.
///
/// # Errors
/// A sentence when the bytes are not such a message.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    ciborium::de::from_reader_with_recursion_limit(bytes, 16).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_and_unknown_fields_are_ignored() {
        let exec = Request::Exec(ExecSpec {
            argv: vec![
                "printf".into(),
                ByteString(vec![0xff, b'\n']),
                "".into(),
                ByteString(vec![b'x'; 40_000]),
            ],
            env: vec![("A".into(), "b c".into())],
            cwd: None,
            user: Some("root".into()),
            tty: Some(TermSize { rows: 24, cols: 80 }),
            stdin: true,
            op_id: "op-000000000000".into(),
        });
        assert_eq!(decode::<Request>(&encode(&exec).unwrap()).unwrap(), exec);

        #[derive(Serialize)]
        struct NewerSpec<'a> {
            dest: &'a ByteString,
            must_be_empty: bool,
            later: &'a str,
        }
        let newer = NewerSpec { dest: &"/x".into(), must_be_empty: true, later: "unknown" };
        let older: UnpackSpec = decode(&encode(&newer).unwrap()).unwrap();
        assert_eq!(older, UnpackSpec { dest: "/x".into(), must_be_empty: true });
    }

    #[test]
    fn rubbish_is_an_error() {
        assert!(decode::<Reply>(&[]).is_err());
        assert!(decode::<Reply>(&[0xff; 100]).is_err());
        assert!(decode::<Reply>(&[0x81; 1000]).is_err(), "deep nesting");
    }
}
