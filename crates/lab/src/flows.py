"""Connections that are opened, left alone, and used again when a line arrives on standard input.

serve PORT            answers every line (TCP) or tells who asked (UDP); on a line of input, pushes to
                      those connections that asked for it
connect HOST PORT N [PATIENCE]
                      opens N connections, of which every other one waits for the server to speak first, and
                      one UDP flow; says "ready"; on a line of input uses each, and says how many still work,
                      of which those that answer within PATIENCE seconds count
"""

import asyncio
import os
import resource
import sys

PATIENCE = float(sys.argv[5]) if len(sys.argv) > 5 else 30
_, most = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


async def a_line_of_input():
    if not await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline):
        os._exit(0)  # whoever started this is gone


def say(text):
    print(text, flush=True)


class WhoAsked(asyncio.DatagramProtocol):
    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, data, address):
        self.transport.sendto(f"{address[0]}:{address[1]}".encode(), address)


async def serve(port):
    pushed = []

    async def one(reader, writer):
        while line := await reader.readline():
            if line == b"push\n":
                pushed.append(writer)
            writer.write(line)

    loop = asyncio.get_running_loop()
    await loop.create_datagram_endpoint(WhoAsked, local_addr=("0.0.0.0", port))
    await asyncio.start_server(one, "0.0.0.0", port, backlog=4096)
    say("ready")
    while True:
        await a_line_of_input()
        for writer in pushed:
            writer.write(b"pushed\n")
        say("pushed")


class Answers(asyncio.DatagramProtocol):
    def __init__(self):
        self.queue = asyncio.Queue()

    def datagram_received(self, data, address):
        self.queue.put_nowait(data.decode())


async def ask(transport, answers):
    """Who the server takes us for."""
    for _ in range(int(PATIENCE * 2)):
        transport.sendto(b"who?")
        try:
            return await asyncio.wait_for(answers.queue.get(), 0.5)
        except asyncio.TimeoutError:
            pass
    return None


async def stay_in_use(transport):
    """Whoever says nothing for 30 seconds is forgotten by the router, whatever happens to it meanwhile."""
    while True:
        await asyncio.sleep(10)
        transport.sendto(b"who?")


async def connect(host, port, count):
    slots = asyncio.Semaphore(100)

    async def open_one(kind):
        async with slots:
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(kind)
            assert await reader.readline() == kind
            return kind, reader, writer

    async def use(kind, reader, writer):
        if kind == b"echo\n":
            writer.write(b"still\n")
        try:
            line = await asyncio.wait_for(reader.readline(), PATIENCE)
        except (asyncio.TimeoutError, OSError):
            return False
        return line == (b"still\n" if kind == b"echo\n" else b"pushed\n")

    kinds = [b"echo\n", b"push\n"]
    flows = await asyncio.gather(*(open_one(kinds[n % 2]) for n in range(count)))
    loop = asyncio.get_running_loop()
    transport, answers = await loop.create_datagram_endpoint(Answers, remote_addr=(host, port))
    before = await ask(transport, answers)
    say("ready")
    use_of_udp = asyncio.create_task(stay_in_use(transport))
    await a_line_of_input()
    use_of_udp.cancel()
    while not answers.queue.empty():
        answers.queue.get_nowait()
    after = await ask(transport, answers)
    alive = sum(await asyncio.gather(*(use(*flow) for flow in flows)))
    say(f"alive {alive} of {count}, udp {'same' if before and before == after else f'{before} became {after}'}")


if sys.argv[1] == "serve":
    asyncio.run(serve(int(sys.argv[2])))
else:
    asyncio.run(connect(sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
