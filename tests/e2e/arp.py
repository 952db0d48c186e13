"""Asks for an address by ARP every 20 ms until standard input ends, and prints, for each question, when it was asked (in
milliseconds since the start) and how many answers came before the next. Two hosts that have the address answer twice."""
import json, os, select, socket, struct, sys, threading, time

interface, own, wanted = sys.argv[1], socket.inet_aton(sys.argv[2]), socket.inet_aton(sys.argv[3])
link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0806))
link.bind((interface, 0x0806))
mac = link.getsockname()[4]
header = b"\xff" * 6 + mac + struct.pack("!HHHBBH", 0x0806, 1, 0x0800, 6, 4, 1)
request = header + mac + own + b"\0" * 6 + wanted
over = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
start, seen = time.monotonic(), []
print("ready", flush=True)
while not over.is_set():
    asked = time.monotonic()
    link.send(request)
    answers = 0
    while (left := asked + 0.02 - time.monotonic()) > 0:
        if select.select([link], [], [], left)[0]:
            frame = link.recv(128)
            # An answer (2) of that address, to us.
            answers += frame[20:22] == b"\0\2" and frame[28:32] == wanted and frame[0:6] == mac
    seen.append((round((asked - start) * 1000), answers))
print(json.dumps(seen))
