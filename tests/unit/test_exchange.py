from __future__ import annotations

import gzip
import os
import socket
import threading
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from necrocode.agent_runner.clients._exchange import (
    AnswerTooLargeError,
    Exchange,
    UnreadableBodyError,
    current_exchange,
    inflated,
)

MEGABYTE = 1 << 20


def read(*chunks: bytes, encoding: str = "gzip", limit_bytes: int = MEGABYTE) -> bytes:
    return b"".join(inflated(chunks, encoding, limit_bytes=limit_bytes))


@given(st.binary(max_size=2000), st.integers(1, 50), st.sampled_from(["gzip", "deflate", "identity", "X-GZIP", ""]))
def test_a_body_is_read_in_whatever_pieces_it_comes(content: bytes, size: int, encoding: str) -> None:
    packed = {"gzip": gzip.compress, "x-gzip": gzip.compress, "deflate": zlib.compress}.get(encoding.lower(), bytes)
    body = packed(content)
    assert read(*(body[at : at + size] for at in range(0, len(body), size)), encoding=encoding) == content


def test_members_of_a_gzip_body_follow_each_other_and_padding_is_left_out() -> None:
    body = gzip.compress(b"one") + gzip.compress(b"two")
    assert read(body) == read(body + b"\0" * 20) == read(body, b"\0") == b"onetwo"


def test_no_body_is_an_empty_one() -> None:
    assert read() == b""


@pytest.mark.parametrize(
    "body", [b"nothing of the kind", gzip.compress(b"x" * 1000, mtime=0)[:-1], gzip.compress(b"x", mtime=0)[:5]]
)
def test_a_body_that_is_no_gzip_or_cut_is_unreadable(body: bytes) -> None:
    with pytest.raises(UnreadableBodyError):
        read(body)


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, gzip", "\x1b"])
def test_an_encoding_that_was_not_asked_for_is_unreadable(encoding: str) -> None:
    with pytest.raises(UnreadableBodyError, match="not asked for"):
        read(b"x", encoding=encoding)


def test_inflating_stops_at_the_limit_and_holds_no_more_than_a_piece() -> None:
    bomb = gzip.compress(b"\0" * (100 * MEGABYTE))
    sizes = []
    with pytest.raises(AnswerTooLargeError):
        sizes += [len(piece) for piece in counted(inflated([bomb], "gzip", limit_bytes=MEGABYTE), sizes)]
    assert sum(sizes) <= MEGABYTE
    assert max(sizes) <= 1 << 16


def counted(pieces: Iterator[bytes], sizes: list[int]) -> Iterator[bytes]:
    for piece in pieces:
        sizes.append(len(piece))
        yield piece


@pytest.mark.parametrize("encoding", ["gzip", ""])
def test_a_body_without_end_is_given_up_even_where_it_inflates_to_nothing(encoding: str) -> None:
    def endless() -> Iterator[bytes]:
        while True:
            yield gzip.compress(b"")

    with pytest.raises(AnswerTooLargeError):
        list(inflated(endless(), encoding, limit_bytes=100_000))


def test_when_the_time_is_over_the_connection_ends_and_its_socket_stays_its_owners() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(10)
        with Exchange(0.05) as exchange:
            assert current_exchange() is exchange
            exchange.start()
            exchange.hold(ours)
            assert ours.recv(1) == b""
        assert exchange.is_over
        assert ours.fileno() >= 0
    assert current_exchange() is None


def test_a_connection_that_comes_too_late_is_hung_up_on_at_once() -> None:
    with Exchange(0) as exchange:
        exchange.start()
        wait_for_the_end_of(exchange)
        ours, theirs = socket.socketpair()
        with ours, theirs:
            exchange.hold(ours)
            assert theirs.recv(1) == b""


def test_an_exchange_that_ends_in_time_leaves_its_connections_alone() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        with Exchange(0.05) as exchange:
            exchange.start()
            exchange.hold(ours)
        with Exchange(0.05) as later:
            later.start()
            wait_for_the_end_of(later)
        assert not exchange.is_over
        theirs.sendall(b"x")
        assert ours.recv(1) == b"x"


def test_a_short_exchange_ends_before_a_long_one_that_began_earlier() -> None:
    with Exchange(600) as long:
        long.start()
        with Exchange(0.05) as short:
            short.start()
            wait_for_the_end_of(short)
        assert not long.is_over


def test_a_pause_ends_an_exchange_that_has_begun_to_beat() -> None:
    with Exchange(600, idle_seconds=0.05) as exchange:
        exchange.start()
        exchange.beat()
        wait_for_the_end_of(exchange)
    assert (exchange.is_over, exchange.was_idle) == (True, True)


def test_the_limit_on_all_of_it_is_no_pause_and_beats_do_not_move_it() -> None:
    with Exchange(0.1, idle_seconds=600) as exchange:
        exchange.start()
        exchange.beat()
        wait_for_the_end_of(exchange)
    assert (exchange.is_over, exchange.was_idle) == (True, False)


def test_an_exchange_may_pause_before_its_first_beat_and_without_a_limit_for_ever() -> None:
    with Exchange(600, idle_seconds=0.01) as quiet, Exchange(600) as unlimited, Exchange(0.1) as later:
        for exchange in (quiet, unlimited, later):
            exchange.start()
        unlimited.beat()
        wait_for_the_end_of(later)
        assert not quiet.is_over
        assert not unlimited.is_over


def test_many_exchanges_share_one_thread() -> None:
    with Exchange(600) as first:
        first.start()
        before = threading.active_count()
        with ExitStack() as others:
            for _ in range(50):
                others.enter_context(Exchange(600)).start()
            assert threading.active_count() == before


def test_the_time_is_up_in_a_child_process_too() -> None:
    with Exchange(600) as exchange:
        exchange.start()
        child = os.fork()
        if child == 0:
            with suppress(BaseException), Exchange(0.05) as short:
                short.start()
                wait_for_the_end_of(short)
                os._exit(0)
            os._exit(1)
    assert os.waitpid(child, 0) == (child, 0)


def wait_for_the_end_of(exchange: Exchange) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.settimeout(10)
        exchange.hold(ours)
        assert theirs.recv(1) == b""
