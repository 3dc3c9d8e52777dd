//! The streams of a session and the order in which they write. One frame a turn, so that no stream
//! waits for another's backlog; the only bytes outside the streams are one batch being written.

use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::io;
use std::sync::{Arc, Mutex};
use std::task::{Poll, Waker};

use banger_protocol::agent::frame::{Header, Kind, Lane, encode_header, trailer};
use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncWrite, AsyncWriteExt};

use crate::ChannelError;
use crate::stream::{Outgoing, Stream, lock};

/// A batch is written when it is this long; it may be one frame longer.
const BATCH: usize = 64 * 1024;
/// Refusals that may wait to be sent.
const MAX_REFUSALS: usize = 256;

/// Who writes next.
#[derive(Default)]
pub(crate) struct Schedule {
    state: Mutex<Ready>,
}

#[derive(Default)]
struct Ready {
    /// Goes before everything else: the answer that begins a session.
    preamble: Option<Vec<u8>>,
    refusals: VecDeque<(u32, u32, Bytes)>,
    streams: VecDeque<Arc<Stream>>,
    writer: Option<Waker>,
}

impl Schedule {
    /// Lets a stream have a turn. Called with the stream locked, so must lock no stream itself.
    pub(crate) fn push(&self, stream: Arc<Stream>) {
        let mut ready = lock(&self.state);
        ready.streams.push_back(stream);
        ready.wake();
    }
}

impl Ready {
    fn wake(&mut self) {
        if let Some(w) = self.writer.take() {
            w.wake();
        }
    }

    fn is_empty(&self) -> bool {
        self.preamble.is_none() && self.refusals.is_empty() && self.streams.is_empty()
    }
}

/// A session's streams.
#[derive(Default)]
pub(crate) struct Mux {
    pub(crate) schedule: Arc<Schedule>,
    streams: Mutex<HashMap<u32, Arc<Stream>>>,
}

impl Mux {
    pub(crate) fn len(&self) -> usize {
        lock(&self.streams).len()
    }

    pub(crate) fn get(&self, id: u32) -> Option<Arc<Stream>> {
        lock(&self.streams).get(&id).map(Arc::clone)
    }

    /// Adds a stream unless its number is taken.
    pub(crate) fn add(&self, id: u32, token: u32, incoming: [bool; 3]) -> Option<Arc<Stream>> {
        match lock(&self.streams).entry(id) {
            std::collections::hash_map::Entry::Occupied(_) => None,
            std::collections::hash_map::Entry::Vacant(slot) => {
                Some(Arc::clone(slot.insert(Stream::new(id, token, incoming, Arc::clone(&self.schedule)))))
            }
        }
    }

    /// Forgets a stream; its handles keep what they have.
    pub(crate) fn remove(&self, stream: &Arc<Stream>) {
        let mut streams = lock(&self.streams);
        if streams.get(&stream.id).is_some_and(|s| Arc::ptr_eq(s, stream)) {
            streams.remove(&stream.id);
        }
    }

    /// Answers an open that cannot be: a reset with a reason.
    pub(crate) fn refuse(&self, id: u32, token: u32, reason: Bytes) {
        let mut ready = lock(&self.schedule.state);
        if ready.refusals.len() < MAX_REFUSALS {
            ready.refusals.push_back((id, token, reason));
            ready.wake();
        }
    }

    /// Ends every stream; nothing of theirs is written after this but what is in the batch.
    pub(crate) fn end_all(&self, why: &ChannelError, forget: bool) {
        let all: Vec<_> = lock(&self.streams).drain().map(|(_, s)| s).collect();
        for stream in all {
            stream.kill(why.clone(), forget);
        }
        let mut ready = lock(&self.schedule.state);
        ready.streams.clear();
        ready.refusals.clear();
    }

    /// Sends these bytes before anything else.
    pub(crate) fn preamble(&self, bytes: Vec<u8>) {
        let mut ready = lock(&self.schedule.state);
        ready.preamble = Some(bytes);
        ready.wake();
    }

    /// Writes whatever streams have to say, for ever.
    pub(crate) async fn write_all<W: AsyncWrite + Unpin>(&self, mut io: W) -> io::Result<()> {
        let mut batch = BytesMut::new();
        loop {
            self.fill(&mut batch).await;
            while batch.has_remaining() {
                if io.write_buf(&mut batch).await? == 0 {
                    return Err(io::ErrorKind::WriteZero.into());
                }
            }
            io.flush().await?;
            if batch.capacity() > 2 * BATCH {
                batch = BytesMut::new();
            }
        }
    }

    /// Waits for something to write and gathers one batch of it.
    async fn fill(&self, batch: &mut BytesMut) {
        poll_fn(|cx| {
            let mut ready = lock(&self.schedule.state);
            if ready.is_empty() {
                ready.writer = Some(cx.waker().clone());
                return Poll::Pending;
            }
            Poll::Ready(())
        })
        .await;
        batch.clear();
        while batch.len() < BATCH {
            let stream = {
                let mut ready = lock(&self.schedule.state);
                if let Some(bytes) = ready.preamble.take() {
                    batch.extend_from_slice(&bytes);
                }
                while let Some((id, token, reason)) = ready.refusals.pop_front() {
                    put(batch, token, id, Kind::Reset, Lane::In, &reason);
                }
                match ready.streams.pop_front() {
                    Some(stream) => stream,
                    None => return,
                }
            };
            let (out, more) = stream.next_outgoing();
            if let Some(out) = out {
                self.encode(batch, &stream, &out);
            }
            if more {
                lock(&self.schedule.state).streams.push_back(stream);
            }
        }
    }

    fn encode(&self, batch: &mut BytesMut, stream: &Arc<Stream>, out: &Outgoing) {
        let mut frame = |kind, lane, payload: &[u8]| put(batch, stream.token, stream.id, kind, lane, payload);
        match out {
            Outgoing::Open(request) => frame(Kind::Open, Lane::In, request),
            Outgoing::Message(message) => frame(Kind::Message, Lane::In, message),
            Outgoing::Data(lane, data) => frame(Kind::Data, *lane, data),
            Outgoing::Eof(lane) => frame(Kind::Eof, *lane, &[]),
            Outgoing::Credit(lane, n) => frame(Kind::Credit, *lane, &n.to_le_bytes()),
            Outgoing::Reset(reason) => frame(Kind::Reset, Lane::In, reason),
            Outgoing::Close => frame(Kind::Close, Lane::In, &[]),
        }
        if matches!(out, Outgoing::Reset(_) | Outgoing::Close) {
            self.remove(stream);
        }
    }
}

fn put(batch: &mut BytesMut, token: u32, stream: u32, kind: Kind, lane: Lane, payload: &[u8]) {
    batch.extend_from_slice(&encode_header(token, Header { stream, kind, lane, len: payload.len() }));
    batch.extend_from_slice(payload);
    batch.extend_from_slice(&trailer(token));
}
