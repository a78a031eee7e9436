"""Every size and time that the server refuses to go beyond, in one place."""

from __future__ import annotations

from neuraverse.keys import MAX_KEY_BYTES
from neuraverse.manifest import MAX_FILE_BYTES, MAX_MANIFEST_BYTES
from neuraverse.skill import MAX_SIGNATURE_BYTES

MIB = 1 << 20

MAX_BLOB_BYTES = MAX_FILE_BYTES  # what is larger fits into no manifest
# A publish carries manifest and signature as JSON text, where quotes and newlines are escaped.
MAX_JSON_BYTES = 2 * (MAX_MANIFEST_BYTES + MAX_SIGNATURE_BYTES + MAX_KEY_BYTES)
MAX_QUERY_CHARACTERS = 200
MAX_PAGE = 100  # skills in one answer
MAX_EVENTS = 1000  # events in one answer
MAX_LINEAGE = 1000  # children in one answer
MAX_VERSIONS = 1000  # versions, and aliases, in one answer; the latest
MAX_WAIT_S = 30.0  # long poll
HEARTBEAT_S = 15.0  # a quiet event stream says that it is alive this often
BODY_IDLE_S = 30.0  # a request body that stays silent longer is given up
BODY_BYTES_PER_S = 1024.0  # and one that is slower than this, once BODY_IDLE_S have passed
GRACE_S = 10.0  # requests in flight may finish for this long after SIGTERM
