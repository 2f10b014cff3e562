"""Packages that pass messages between processes, as transports. `make .venv/.group-messages` installs them."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import shutil
import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from transports import IN_PLACE, MIB, Consume, OfBytes, Produce, Slots, Transport, add, unique


def patient(
    attempt: Callable[[Any], Any], refused: Any, errors: type[BaseException] | tuple[Any, ...] = ()
) -> Any:
    """For packages that refuse instead of waiting: try again, giving way to the other process."""

    def send(data: Any) -> None:
        while True:
            with contextlib.suppress(errors):
                if attempt(data) is not refused:
                    return
            time.sleep(0)

    return send


def asking(attempt: Callable[[], Any]) -> Callable[[], Any]:
    """For packages whose receiver can only ask."""

    def receive() -> Any:
        while (data := attempt()) is None:
            time.sleep(0)
        return data

    return receive


class PosixIpc(Slots):
    """The recipe by hand with posix_ipc's semaphores."""

    def semaphores(self) -> tuple[Any, Any]:
        module, made = importlib.import_module("posix_ipc"), []
        for count in (self.slots, 0):
            made.append(module.Semaphore(unique("/mm"), module.O_CREX, initial_value=count))
            made[-1].unlink()
        return made[0], made[1]


class ZeroMq(Transport):
    """pyzmq, PUSH and PULL over ipc://."""

    def setup(self) -> None:
        self.module = importlib.import_module("zmq")
        self.address = f"ipc://@{unique('mmbench')}"

    def made(self, kind: int) -> Any:
        end = self.module.Context().socket(kind)
        end.setsockopt(self.module.SNDHWM, self.slots)
        end.setsockopt(self.module.RCVHWM, self.slots)
        return end

    def sending(self) -> Callable[[Any], Any]:
        end = self.made(self.module.PUSH)
        end.connect(self.address)
        return end.send

    def receiving(self) -> Callable[[], Any]:
        end = self.made(self.module.PULL)
        end.bind(self.address)
        return end.recv if self.nbytes < IN_PLACE else lambda: end.recv(copy=False).buffer


class FasterFifo(OfBytes):
    """faster-fifo, bytes as they are."""

    def setup(self) -> None:
        module = importlib.import_module("faster_fifo")
        self.queue = module.Queue(self.slots * (self.nbytes + 64), loads=bytes, dumps=lambda data: data)

    def sending(self) -> Callable[[Any], Any]:
        return self.queue.put

    def receiving(self) -> Callable[[], Any]:
        return self.queue.get


class FasterFifoBatches(FasterFifo):
    """faster-fifo, put_many and get_many."""

    def sender(self) -> Produce:
        put, words, nbytes = self.queue.put_many, self.nbytes // 8, self.nbytes

        def produce(first: int, count: int) -> None:
            raw = np.arange(first, first + count, dtype="u8").repeat(words).tobytes()
            put([raw[at : at + nbytes] for at in range(0, len(raw), nbytes)], timeout=60)

        return produce

    def receiver(self) -> Consume:
        get, words = self.queue.get_many, self.nbytes // 8

        def consume(count: int) -> Any:
            parts: list[bytes] = []
            while len(parts) < count:
                parts += get(max_messages_to_get=count - len(parts), timeout=60)
            return add(np.frombuffer(b"".join(parts), "u8").reshape(-1, words), 1)

        return consume


class Iceoryx(Transport):
    """iceoryx2, publish and subscribe with backpressure; its receiver polls."""

    def setup(self) -> None:
        self.module = importlib.import_module("iceoryx2")
        self.name = unique("mmbench/")

    def service(self) -> Any:
        module = self.module
        module.set_log_level(module.LogLevel.Fatal)
        self.node = module.NodeBuilder.new().create(module.ServiceType.Ipc)
        builder = self.node.service_builder(module.ServiceName.new(self.name))
        builder = builder.publish_subscribe(module.Slice[ctypes.c_uint8])
        return builder.enable_safe_overflow(False).subscriber_max_buffer_size(self.slots).open_or_create()

    def sender(self) -> Produce:
        self.held = self.service()
        builder = self.held.publisher_builder().initial_max_slice_len(self.nbytes)
        publisher = builder.backpressure_strategy(
            self.module.BackpressureStrategy.RetryUntilDelivered
        ).create()
        loan, show, nbytes = publisher.loan_slice_uninit, np.frombuffer, self.nbytes
        kind = ctypes.c_uint8 * nbytes

        def produce(first: int, count: int) -> None:
            for number in range(first, first + count):
                sample = loan(nbytes)
                show(kind.from_address(sample.payload_ptr), "u8").fill(number)
                sample.assume_init().send()

        return produce

    def receiver(self) -> Consume:
        self.held = self.service()
        subscriber = self.held.subscriber_builder().buffer_size(self.slots).create()
        receive, show, kind = asking(subscriber.receive), np.frombuffer, ctypes.c_uint8 * self.nbytes

        def consume(count: int) -> list[Any]:
            sums = []
            for _ in range(count):
                sample = receive()
                sums.append(add(show(kind.from_address(sample.payload_ptr), "u8")))
                sample.delete()
            return sums

        return consume

    def leave(self) -> None:
        self.held = self.node = self.kept = None


class Zenoh(OfBytes):
    """Zenoh between two peers over shared memory."""

    def setup(self) -> None:
        self.module, self.key = importlib.import_module("zenoh"), unique("mmbench/")
        self.before = set(Path("/dev/shm").glob("*.zenoh"))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"tcp/127.0.0.1:{free.getsockname()[1]}"

    def session(self, verb: str) -> Any:
        config = self.module.Config()
        config.insert_json5("mode", '"peer"')
        config.insert_json5("scouting/multicast/enabled", "false")
        config.insert_json5("transport/shared_memory/enabled", "true")
        config.insert_json5(f"{verb}/endpoints", f'["{self.address}"]')
        return self.module.open(config)

    def sending(self) -> Callable[[Any], Any]:
        module, nbytes = self.module, self.nbytes
        self.held = self.session("connect")
        publisher = self.held.declare_publisher(self.key, congestion_control=module.CongestionControl.BLOCK)
        provider = module.shm.ShmProvider.default_backend(max(2 * self.slots * (nbytes + 64), MIB))
        policy = module.shm.BlockOn(module.shm.GarbageCollect())
        while not publisher.matching_status.matching:
            time.sleep(0.01)

        def send(data: bytes) -> None:
            room = provider.alloc(nbytes, policy=policy)
            room[:] = data
            publisher.put(room)

        return send

    def receiving(self) -> Callable[[], Any]:
        self.held = self.session("listen")
        channel = self.module.handlers.FifoChannel(self.slots)
        self.subscriber = self.held.declare_subscriber(self.key, channel)
        take = self.subscriber.recv

        def receive() -> Any:
            return take().payload.to_bytes()

        return receive

    def leave(self) -> None:
        self.held.close()

    def close(self) -> None:
        """Two of its segments stay behind; those that came meanwhile and nobody maps are ours."""
        shown = ""
        for maps in Path("/proc").glob("[0-9]*/maps"):
            with contextlib.suppress(OSError):
                shown += maps.read_text()
        for segment in set(Path("/dev/shm").glob("*.zenoh")) - self.before:
            if segment.name not in shown:
                segment.unlink(missing_ok=True)


class Cloudtoid(Transport):
    """cloudtoid-interprocess; its sender asks again when there is no room."""

    def setup(self) -> None:
        self.module = importlib.import_module("cloudtoid_interprocess")
        self.name, self.capacity = unique("mmbench"), self.slots * (self.nbytes + 64)
        self.folder = tempfile.mkdtemp(dir="/dev/shm")

    def sending(self) -> Callable[[Any], Any]:
        self.held = self.module.Publisher(self.name, self.capacity, self.folder)
        return patient(self.held.try_send, False)

    def receiving(self) -> Callable[[], Any]:
        self.held = self.module.Subscriber(self.name, self.capacity, self.folder)
        return self.held.receive

    def close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        Path(f"/dev/shm/sem.ct3ip.{self.name}").unlink(missing_ok=True)


class Membridge(OfBytes):
    """membridge's ring; both sides ask again."""

    def setup(self) -> None:
        self.module = importlib.import_module("membridge")
        self.name = unique("/mmbench-")
        nbytes = 1 << (self.slots * (self.nbytes + 4)).bit_length()
        self.memory = self.module.SharedMemory.create(self.name, nbytes + 24)
        self.ring = self.memory.spsc()

    def sending(self) -> Callable[[Any], Any]:
        self.held = self.module.SharedMemory.open(self.name)
        self.end = self.held.spsc()
        return patient(self.end.push, False)

    def receiving(self) -> Callable[[], Any]:
        self.held = self.module.SharedMemory.open(self.name)
        self.end = self.held.spsc()
        return asking(self.end.pop)

    def close(self) -> None:
        self.module.SharedMemory.remove(self.name)


PACKAGES: dict[str, Any] = {
    "posix_ipc, by hand": PosixIpc,
    "pyzmq": ZeroMq,
    "faster-fifo": FasterFifo,
    "iceoryx2": Iceoryx,
    "zenoh shm": Zenoh,
    "cloudtoid": Cloudtoid,
    "membridge": Membridge,
}
# what is left out, and why
ABSENT = {
    "global-buffer": "its writer overwrites what is not read yet, and every message counts here",
    "kickmsg": "its ring keeps slots that were read and overwrites those that were not: a sender cannot wait",
}
