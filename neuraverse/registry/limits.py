"""Sizes and times that the server refuses to go beyond and nobody needs to set; the others are settings."""

from __future__ import annotations

from neuraverse.keys import MAX_KEY_BYTES
from neuraverse.manifest import MAX_MANIFEST_BYTES
from neuraverse.skill import MAX_SIGNATURE_BYTES
from neuraverse.statement import MAX_STATEMENT_BYTES

MIB = 1 << 20

# A publish carries manifest and signature as JSON text, where quotes and newlines are escaped.
MAX_PUBLISH_BYTES = 2 * (MAX_MANIFEST_BYTES + MAX_SIGNATURE_BYTES + MAX_KEY_BYTES)
MAX_PARCEL_BYTES = 16 * MIB  # a publish with its files; larger ones upload their files first
MAX_HEADER_BYTES = 32 << 10  # request line and headers
MAX_QUERY_CHARACTERS = 200
MAX_SHOWN = 100  # characters of a name in a refusal that the client made up
MAX_DIGESTS = 1000  # asked about at once
MAX_DIGESTS_BYTES = 100 * MAX_DIGESTS  # 64 digits, quotes, a comma, and the indentation of a careful writer
MAX_BEGIN_BYTES = 1024  # of an upload: its digest and size
MAX_BODY_BYTES = 6 * (MAX_STATEMENT_BYTES + 2048)  # all else: a signed statement, each letter as \u0041
MAX_PAGE = 100  # skills in one answer
MAX_TAGS = 16  # that a search asks for at once
MAX_COUNTED = 1000  # skills whose facets are counted: those with the best evidence
MAX_FACET_VALUES = 50  # of each facet that are counted: those of most skills
MAX_OFFERED = 256  # signals that a robot measures, and as many that it takes
MAX_SIGNALS_HELD = 4_000_000  # of interfaces in memory; 8 bytes each
MAX_EVENTS = 1000  # events in one answer
MAX_LINEAGE = 1000  # children, or nodes of a graph, in one answer
MAX_VERSIONS = 1000  # versions, aliases, or moves of an alias, in one answer; the latest
MAX_REASON = 500  # characters of why a version was yanked
MAX_WAIT_S = 30.0  # long poll
MAX_STREAMED = 100  # events that a stream sends at once
READER_S = 20.0  # a stream whose reader takes nothing for so long ends
HEARTBEAT_S = 15.0  # a quiet event stream says that it is alive this often
MAX_LISTED = 1000  # members, tokens, invitations or lines of the audit log, in one answer
MAX_TOKEN_HOURS = 5 * 365 * 24.0
MAX_WEBHOOKS = 10  # of an organisation
MAX_DEAD_LETTERS = 1000  # of a webhook; the latest
MAX_URL = 2000  # characters of where a webhook is
MAX_DELIVERIES = 100  # that are under way at once
MAX_OUTBOUND_ANSWER = 8 << 10  # bytes that are read of a webhook's answer
OUTBOUND_S = 15.0  # a delivery takes at most so long
MAX_FOLLOWS = 100  # references that a robot follows, or skills that it is pinned at
MAX_RUNS = 1000  # versions that a robot may report on: those that it ran last
MAX_STANDINGS_HELD = 4_000_000  # skills whose rank is held in memory; 20 bytes each
MAX_SAID = 2000  # characters of why a robot does or does not run something, of which the first are kept
MAX_STAGES = 20  # of a roll-out
MAX_STAGE_EPISODES = 1_000_000
MAX_REPORTS = 600  # of a robot from the field, an hour
MAX_REPORT_EPISODES = 10_000
MAX_ERRORS = 20  # names of physical errors, of a version on a body
MAX_SOFTWARE = 20  # names of software in a report
MAX_FIELD_BODIES = 10  # that one robot reports on, for each version
MAX_MEASURED = 1e12  # of any unit; and how often
