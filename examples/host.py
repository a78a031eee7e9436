"""An operator: host a registry inside a program, and see what happens in it.

    python examples/host.py runs/demo/registry --seconds 60

On a server, `neuraverse serve --data DIR` does the hosting.
"""

import argparse
import threading

from neuraverse.client import Client
from neuraverse.registry import background

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("data", help="folder of the registry; made if missing")
parser.add_argument("--seconds", type=float, default=60.0)
args = parser.parse_args()

stop = threading.Event()
with background(args.data) as url, Client(url) as client:
    print("registry at", url)
    for skill in client.search():
        print(
            f"{skill.name} {skill.version}: success {skill.rate:.1%} of {skill.n} episodes, on {skill.robot}"
        )
    timer = threading.Timer(args.seconds, stop.set)
    timer.start()
    for event in client.watch(after="0", stop=stop):
        print(event.id, event.at, event.type, event.name, event.version)
    timer.cancel()
