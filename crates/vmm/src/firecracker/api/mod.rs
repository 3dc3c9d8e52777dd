//! The client of Firecracker's API: HTTP over its unix socket. Owns the calls and their deadlines.
//! Must never believe that the other side is well-behaved: answers are capped, read as what they
//! should be or refused, and every call ends in time.

mod types;

use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;

pub(super) use types::*;

use crate::sockets;

/// The largest body we read, bytes; real ones are below a few hundred.
const BODY_MAX: usize = 64 << 10;
/// The most of a sentence of Firecracker's that we pass on, characters.
const SENTENCE_MAX: usize = 500;
/// How long an answer may take that needs no work to speak of.
pub(super) const ANSWER: Duration = Duration::from_secs(5);
/// How long one may take that writes or reads a machine's memory.
pub(super) const MEMORY: Duration = Duration::from_secs(120);

/// Why a call did not succeed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum ApiError {
    /// There is nobody, or the connection broke before the answer was whole.
    #[error("the connection failed: {0}")]
    Closed(String),
    /// No answer in time.
    #[error("no answer within {0} s")]
    Late(u64),
    /// The call was refused: Firecracker's sentence.
    #[error("{0}")]
    Refused(String),
    /// An answer that makes no sense.
    #[error("an answer that makes no sense: {0}")]
    Garbled(String),
}

/// The API behind one socket. Each call has a connection of its own: nobody knows how long it is until the next.
#[derive(Debug, Clone)]
pub(super) struct Client {
    socket: PathBuf,
}

impl Client {
    pub(super) fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned() }
    }

    /// A connection for several calls; the error is that of connecting.
    pub(super) async fn connect(&self) -> io::Result<Connection<UnixStream>> {
        let stream = sockets::connect(&self.socket).await?;
        Connection::over(stream).await.map_err(io::Error::other)
    }

    pub(super) async fn put<C: Call>(&self, call: &C) -> Result<(), ApiError> {
        self.connected().await?.put(call).await
    }

    /// What the machine says it does.
    pub(super) async fn instance(&self) -> Result<Instance, ApiError> {
        self.connected().await?.instance().await
    }

    /// Its version.
    pub(super) async fn version(&self) -> Result<String, ApiError> {
        let answer = self.connected().await?.get::<VersionAnswer>("/version").await;
        Ok(answer?.firecracker_version)
    }

    async fn connected(&self) -> Result<Connection<UnixStream>, ApiError> {
        self.connect().await.map_err(|e| ApiError::Closed(e.to_string()))
    }
}

/// What moves the bytes of a connection.
type Driven<S> = http1::Connection<TokioIo<S>, Full<Bytes>>;

/// A connection, for one call after the other. It is driven by the calls and ends with this: no task outlives a call that
/// was dropped. After a call that failed there is no use in another.
pub(super) struct Connection<S: AsyncRead + AsyncWrite + Unpin> {
    sender: SendRequest<Full<Bytes>>,
    /// `None` when it has been closed.
    driver: Option<Pin<Box<Driven<S>>>>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    pub(super) async fn over(stream: S) -> Result<Self, ApiError> {
        let (sender, driver) = http1::handshake(TokioIo::new(stream)).await.map_err(|e| broken(&e))?;
        Ok(Self { sender, driver: Some(Box::pin(driver)) })
    }

    pub(super) async fn put<C: Call>(&mut self, call: &C) -> Result<(), ApiError> {
        let body = serde_json::to_vec(call).map_err(|e| ApiError::Garbled(e.to_string()))?;
        self.call(call.method(), &call.path(), body, call.limit(), read_done).await
    }

    /// What the machine says it does.
    pub(super) async fn instance(&mut self) -> Result<Instance, ApiError> {
        self.get("/").await
    }

    async fn get<T: DeserializeOwned>(&mut self, path: &str) -> Result<T, ApiError> {
        self.call(Method::GET, path, Vec::new(), ANSWER, read_answer).await
    }

    async fn call<T>(
        &mut self,
        method: Method,
        path: &str,
        body: Vec<u8>,
        limit: Duration,
        read: impl FnOnce(u16, &[u8]) -> Result<T, ApiError>,
    ) -> Result<T, ApiError> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "localhost")
            .header("accept", "application/json")
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|e| ApiError::Garbled(e.to_string()))?;
        match tokio::time::timeout(limit, self.exchange(request)).await {
            Ok(answer) => answer.and_then(|(status, body)| read(status.as_u16(), &body)),
            Err(_) => Err(ApiError::Late(limit.as_secs())),
        }
    }

    async fn exchange(&mut self, request: Request<Full<Bytes>>) -> Result<(StatusCode, Bytes), ApiError> {
        let Self { sender, driver } = self;
        let Some(driving) = driver else { return Err(ApiError::Closed("it was closed".to_owned())) };
        let answer = async {
            sender.ready().await.map_err(|e| broken(&e))?;
            let answer = sender.send_request(request).await.map_err(|e| broken(&e))?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), BODY_MAX).collect().await;
            let body = body.map_err(|e| ApiError::Closed(e.to_string()))?.to_bytes();
            Ok((status, body))
        };
        tokio::pin!(answer);
        tokio::select! {
            biased;
            answer = &mut answer => answer,
            end = driving => {
                *driver = None;
                match end {
                    Ok(()) => answer.await,
                    Err(error) => Err(broken(&error)),
                }
            }
        }
    }
}

/// What becomes of bytes that come instead of an answer: the words of the error, if it is one.
#[cfg(fuzzing)]
pub(super) async fn judge(stream: impl AsyncRead + AsyncWrite + Unpin) -> Option<String> {
    let answer = async { Connection::over(stream).await?.instance().await };
    answer.await.err().map(|e| e.to_string())
}

fn broken(error: &hyper::Error) -> ApiError {
    use std::error::Error as _;
    let cause = error.source().map(|source| format!("{error}: {source}"));
    let text = cause.unwrap_or_else(|| error.to_string());
    if error.is_parse() { ApiError::Garbled(text) } else { ApiError::Closed(text) }
}

/// Reads the answer to a call that returns nothing.
pub(super) fn read_done(status: u16, body: &[u8]) -> Result<(), ApiError> {
    if (200..300).contains(&status) { Ok(()) } else { Err(refusal(status, body)) }
}

/// Reads the answer to a call that returns something.
pub(super) fn read_answer<T: DeserializeOwned>(status: u16, body: &[u8]) -> Result<T, ApiError> {
    read_done(status, body)?;
    serde_json::from_slice(body).map_err(|e| ApiError::Garbled(e.to_string()))
}

/// A 4xx is Firecracker's word on what was asked; anything else is nonsense.
fn refusal(status: u16, body: &[u8]) -> ApiError {
    let fault = serde_json::from_slice::<Fault>(body).ok().map(|fault| sentence(&fault.fault_message));
    match (status, fault) {
        (400..=499, Some(fault)) if !fault.is_empty() => ApiError::Refused(fault),
        (400..=499, _) => ApiError::Refused(format!("it refused without a word (status {status})")),
        (_, Some(fault)) => ApiError::Garbled(format!("status {status}: {fault}")),
        (_, None) => ApiError::Garbled(format!("status {status}")),
    }
}

/// One line, not too long, without anything that a terminal acts on.
fn sentence(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let plain = crate::console::plain(&line);
    plain.chars().take(SENTENCE_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_firecrackers_own_sentence_on_one_line() {
        let body = br#"{"fault_message": "The kernel file cannot be opened:\n No such \u001b[31mfile"}"#;
        let error = read_done(400, body).unwrap_err();
        assert_eq!(error, ApiError::Refused("The kernel file cannot be opened: No such file".into()));
        let long = format!(r#"{{"fault_message": "{}"}}"#, "x".repeat(10_000));
        let ApiError::Refused(text) = read_done(400, long.as_bytes()).unwrap_err() else { unreachable!() };
        assert_eq!(text.chars().count(), SENTENCE_MAX);
    }

    #[test]
    fn whatever_comes_is_an_answer_or_an_error_of_its_own_kind() {
        for body in [&b""[..], b"{}", b"[1]", b"\xff\xfe", br#"{"fault_message": 7}"#] {
            assert!(matches!(read_done(404, body), Err(ApiError::Refused(_))), "{body:?}");
            assert!(matches!(read_done(500, body), Err(ApiError::Garbled(_))), "{body:?}");
            assert!(matches!(read_answer::<Instance>(200, body), Err(ApiError::Garbled(_))), "{body:?}");
            assert_eq!(read_done(204, body), Ok(()));
        }
        let lied = br#"{"state": "Dancing", "id": "x"}"#;
        assert!(matches!(read_answer::<Instance>(200, lied), Err(ApiError::Garbled(_))));
        let told: Instance = read_answer(200, br#"{"state": "Not started", "vmm_version": "1"}"#).unwrap();
        assert_eq!(told.state, State::NotStarted);
    }
}
