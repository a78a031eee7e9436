"""The client: search, resolve, pull, publish, watch.

A pull goes: resolve → manifest (bounded) → digest → signature and trust → does it fit the robot → files,
hashed while they stream → check of the whole → rename into the cache. Each step refuses before the next costs
anything, and no weight is read of a skill that is not signed by a trusted key or does not fit.
"""

from __future__ import annotations

import dataclasses
import logging
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, Unpack

from neuraverse.client import answers, reports
from neuraverse.client.cache import Cache
from neuraverse.client.credentials import token_for
from neuraverse.client.download import Progress
from neuraverse.client.finding import PAGE, Facets, parameters, plain_offer
from neuraverse.client.keeping import Kept, kept
from neuraverse.client.memory import Memory
from neuraverse.client.publishing import publish
from neuraverse.client.pulling import Pull, fetch_manifest, note_revoked, open_local
from neuraverse.client.refs import (
    BEGINNING,
    CURSOR,
    Event,
    Ref,
    Resolved,
    Summary,
    is_path,
    resolved_of,
)
from neuraverse.client.transport import Transport
from neuraverse.client.watching import watch
from neuraverse.errors import ManifestError, NetworkError, RevokedError, UsageError
from neuraverse.storage import disk_errors, flush

if TYPE_CHECKING:
    import httpx

    from neuraverse.client.reports import Measured, State
    from neuraverse.interface import Offer
    from neuraverse.skill import Skill
    from neuraverse.trust import KeyStore

log = logging.getLogger("neuraverse.client")
_MAX_PAGES = 500


class Client:
    """A registry, seen from a robot or a script. Use it as a context manager, or call `close`.

    Args:
        url: Address of the registry; ``$NEURAVERSE_REGISTRY`` or http://127.0.0.1:8420 if not given.
        home: Where keys, trust and cache live; ``$NEURAVERSE_HOME`` or its default if not given.
        http: An httpx client to use instead of an own one; it stays open.
        token: Sent as a bearer token; ``$NEURAVERSE_TOKEN`` or what `neuraverse login` got if not given.

    Raises:
        UsageError: The address is no HTTP URL.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        home: Path | str | None = None,
        http: httpx.Client | None = None,
        token: str | None = None,
    ) -> None:
        from neuraverse.trust import KeyStore

        self.keys: KeyStore = KeyStore(home)
        self.home: Path = self.keys.home
        self._transport = Transport(url, http, token)
        if token is None:
            self._transport.token = token_for(self.home, self._transport.url)
        self._cache = Cache(self.home)
        self._memory = Memory(home=self.home, registry=self._transport.url)

    @property
    def url(self) -> str:
        """Address of the registry."""
        return self._transport.url

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def search(self, q: str = "", *, limit: int | None = None, **facets: Unpack[Facets]) -> list[Summary]:
        """Skills with all words and facets, the best proven first.

        Args:
            q: Words that must all occur in name, title, description, tags, robot or task.
            limit: At most so many; all if None.
            facets: What else must hold; see `Facets`.

        Raises:
            NetworkError: The registry could not be asked, or has too many to list without a limit.
            RegistryError: It refused.
        """
        return self._listed("GET", "/v1/skills", q, limit, facets)

    def runnable(
        self, offer: Offer, q: str = "", *, limit: int | None = None, **facets: Unpack[Facets]
    ) -> list[Summary]:
        """Of those skills, the ones that a robot can run with what it offers.

        Raises:
            NetworkError: The registry could not be asked, or has too many to list without a limit.
            RegistryError: It refused.
        """
        return self._listed("POST", "/v1/skills/runnable", q, limit, facets, json=plain_offer(offer))

    def _listed(
        self, method: str, path: str, q: str, limit: int | None, facets: Facets, **request: Any
    ) -> list[Summary]:
        found: list[Summary] = []
        params = {"q": q, "cursor": "", **parameters(facets)}
        for _ in range(_MAX_PAGES):
            wanted = PAGE if limit is None else min(PAGE, limit - len(found))
            if wanted <= 0:
                return found
            page = self._transport.json(method, path, params={**params, "limit": wanted}, **request)
            skills = page.get("skills")
            if not isinstance(skills, list):
                raise NetworkError(f"{self.url} sent a list of skills that is none")
            found += map(Summary.of, skills)
            following = page.get("next")
            if not isinstance(following, str) or following == params["cursor"]:
                return found[:limit]
            params["cursor"] = following
        raise NetworkError(f"{self.url} lists more than {len(found)} skills", remedy="search for more words")

    def resolve(self, ref: str | Ref) -> Resolved:
        """What a reference means now; what it meant before, if the registry cannot be asked.

        In that case a warning is logged, the skill is in the cache, and the answer is not ``fresh``.

        Raises:
            UsageError: It is malformed.
            NotFoundError: There is no such skill, version or alias.
            RevokedError: Its publisher took it back.
            NetworkError: The registry could not be asked.
            ContentError: The registry answered with something else than what was asked for.
        """
        wanted = Ref.parse(ref) if isinstance(ref, str) else ref
        if wanted.digest:
            from neuraverse.manifest import SkillManifest

            manifest = SkillManifest.parse(self.manifest(wanted.digest))
            return Resolved(name=manifest.name, version=manifest.version, digest=wanted.digest)
        try:
            found = resolved_of(self._transport.json("GET", wanted.path))
        except RevokedError as error:
            note_revoked(self._transport, self._memory, wanted, error)
            raise
        except NetworkError as error:
            before = self._memory.recall(wanted)
            if before is None or not self._cache.skill(before.digest).exists():
                raise
            self._memory.refuse_revoked(before)
            log.warning("%s - going on with %s, which it meant before", error, before.ref)
            return dataclasses.replace(before, asked=str(wanted), fresh=False)
        for text in found.warnings:
            log.warning("%s", text)
        wanted.expect(found)
        self._memory.check(found)
        return dataclasses.replace(found, asked=str(wanted))

    def manifest(self, digest: str) -> bytes:
        """The exact bytes of a manifest, which have this digest; who signed them is not looked at.

        Raises:
            IntegrityError: The registry sent other bytes.
            NotFoundError: It has none.
            NetworkError: It could not be asked, or sends more than a manifest may have.
        """
        return fetch_manifest(self._transport, digest)

    def standing(self, found: Resolved) -> dict[str, Any]:
        """What a registry says of a skill besides its bytes.

        Returns:
            ``children``, digests of the skills that name it as their parent; and ``field``, how it does on
            robots: ``n`` episodes and ``successes``, or None if none has been reported.

        Raises:
            NotFoundError: The registry does not have the skill.
            NetworkError: The registry could not be asked.
        """
        return answers.standing(self._transport.json("GET", f"/v1/skills/{found.name}/{found.version}"))

    def pull(
        self,
        ref: str | Ref | Resolved,
        *,
        offer: Offer | None = None,
        trust: KeyStore | None = None,
        progress: Progress | None = None,
        offline: bool = False,
    ) -> Skill:
        """A skill on this machine: whole, signed by a trusted key, and fit for the robot.

        What is in the cache is not downloaded again, but checked again. A pull that was cut goes on where it
        was. Pulls in other processes do not disturb this one. When the registry cannot be asked, a reference
        means what it meant before, and a warning is logged.

        A skill that was pulled survives the end of this process, and after `flush` a power cut, too;
        what that has spoilt is found and pulled again.

        Args:
            ref: ``org/skill``, ``org/skill@1.0.0``, ``org/skill@^1.2``, ``org/skill@alias``,
                ``sha256:<hex>``, a local folder, or what `resolve` gave.
            offer: What the robot can supply; None skips the question.
            trust: Keys to accept; those of `home` if not given.
            progress: Called with bytes done and bytes in total.
            offline: Ask no network; the reference means what it meant before.

        Raises:
            UsageError: The reference is malformed.
            NotFoundError: There is no such skill.
            RevokedError: Its publisher took it back.
            NetworkError: The registry could not be asked; a retry may work and goes on.
            ContentError: What it sent is wrong, unsigned, or signed by a key that is not trusted.
            IncompatibleError: The skill does not fit the robot; its weights were not loaded.
            StorageError: The disk is full, read-only or gone; nothing half-written is left.
        """
        keys = trust or self.keys
        if isinstance(ref, str) and is_path(ref):
            return open_local(Path(ref).expanduser(), offer, keys)
        pull = Pull(self._transport, self._cache, self._memory, keys, offer, progress)
        if isinstance(ref, Resolved):
            return pull.settled(ref)
        wanted = Ref.parse(ref) if isinstance(ref, str) else ref
        if offline:
            return pull.offline(wanted)
        if not wanted.digest:
            return pull.named(wanted)
        held = self._cache.name_of(wanted.digest)
        if held is None:
            return pull.settled(self.resolve(wanted))
        self._memory.refuse_revoked(held)  # a digest that is in the cache needs no registry
        return pull.settled(held)

    def pull_if(
        self,
        ref: Ref,
        wants: Callable[[Resolved], bool],
        *,
        held: Resolved | None = None,
        known: Sequence[Resolved] = (),
        offer: Offer | None = None,
        trust: KeyStore | None = None,
    ) -> Skill | None:
        """Ask what a reference means, and pull that in the same request if it is wanted.

        Args:
            ref: The reference, by name.
            wants: Called with what it means, while the answer waits: it decides, and asks nobody. What it is
                given does not tell of warnings and states.
            held: The version that acts; what `wants` is given says whether that is ``gone``.
            known: Others of which nothing needs to be sent.
            offer: What the robot can supply; None skips the question.
            trust: Keys to accept; those of `home` if not given.

        Returns:
            The skill; None if it is not wanted.

        Raises:
            UsageError: The reference is a digest, which never changes.
            NeuraverseError: As `pull`.
        """
        if ref.digest:
            raise UsageError(f"{ref} never changes", remedy="pull it")
        pull = Pull(self._transport, self._cache, self._memory, trust or self.keys, offer)
        return pull.if_wanted(ref, wants, held, known)

    def flush(self, skill: Skill, ref: str | Ref | None = None) -> None:
        """Let a skill that was pulled, and what its reference means, survive a power cut.

        A robot does so with the skill that it runs, so that it can start again without a network.

        Args:
            skill: The skill.
            ref: What was asked for, if that was not its version.

        Raises:
            StorageError: The disk is full, read-only or gone.
        """
        found = Resolved.of(skill)
        wanted = Ref.parse(ref) if isinstance(ref, str) else ref or Ref.parse(skill.ref)
        with disk_errors("read", skill.path):
            here = [*skill.path.iterdir(), skill.path, skill.path.parent]
        flush([*here, *self._memory.files(wanted, found)])

    def keep_linked(self, link: Path) -> None:
        """Keep whatever skill of the cache `link` points to, now or later, from being pruned.

        Raises:
            StorageError: The disk is full, read-only or gone.
        """
        self._cache.keep_linked(link)

    def cached(self, name: str = "") -> list[Kept]:
        """The skills in the cache, those of one name if it is given; the last used first."""
        return [each for each in kept(self._cache) if not name or each.name == name]

    def publish(
        self,
        path: Path | str,
        *,
        key: str = "default",
        progress: Progress | None = None,
        visibility: str | None = None,
    ) -> Resolved:
        """Check a skill directory, upload what the registry lacks, and make it visible.

        A publish that was cut can simply be run again. An unsigned skill is signed first.

        Args:
            path: The directory.
            key: Name of the own key that signs.
            progress: Called with bytes done and bytes in total.
            visibility: Who may see a skill that is new: ``public``, ``network`` (whoever signs in) or
                ``private`` (the organisation); what the organisation has set if None.

        Raises:
            ContentError: The directory is no valid skill, or signed by another key.
            UnknownNameError: There is no such key.
            ConflictError: The version is taken by other bytes.
            RegistryError: The registry refused; the message says why.
            NetworkError: It could not be asked.
        """
        return publish(self._transport, self.keys, Path(path), key, progress, visibility)

    def describe(self, name: str) -> dict[str, Any]:
        """Versions and their states, aliases, deprecation and serial number of a skill.

        Raises:
            NotFoundError: There is no such skill.
            NetworkError: The registry could not be asked.
        """
        return answers.described(self._transport.json("GET", f"/v1/skills/{Ref.parse(name).name}"))

    def lineage(self, ref: str) -> dict[str, Any]:
        """Ancestors and descendants of a skill: ``root``, ``nodes`` and ``edges`` from parent to child.

        Raises:
            NotFoundError: There is no such skill.
            NetworkError: The registry could not be asked.
        """
        return answers.lineage(self._transport.json("GET", f"{self._by_name(ref).path}/lineage"))

    def diff(self, name: str, old: str, new: str) -> dict[str, Any]:
        """What differs between two versions: interface, evaluation, training and files, field by field.

        Raises:
            NotFoundError: There is no such skill or version.
            NetworkError: The registry could not be asked.
        """
        path = f"/v1/skills/{Ref.parse(name).name}/diff"
        return answers.diff(self._transport.json("GET", path, params={"from": old, "to": new}))

    def alias_history(self, name: str, alias: str) -> dict[str, Any]:
        """What an alias means and its ``moves``, the newest first: when, and signed by whom.

        Raises:
            NotFoundError: There never was such an alias.
            NetworkError: The registry could not be asked.
        """
        path = f"/v1/skills/{Ref.parse(name).name}/aliases/{_slug(alias)}"
        return answers.moves(self._transport.json("GET", path))

    def state(self, name: str, action: str, *, key: str = "default", **fields: str) -> int:
        """Sign and send a statement about a skill.

        Args:
            name: ``org/skill``.
            action: ``alias``, ``unalias``, ``yank``, ``unyank``, ``revoke``, ``deprecate``, ``undeprecate``.
            key: Name of the own key that signs; one that the organisation publishes with.
            fields: What the action needs: see `neuraverse.statement`.

        Returns:
            The id of the event.

        Raises:
            UsageError: The statement is malformed.
            UnknownNameError: There is no such key.
            NotFoundError: There is no such skill, version or alias.
            ConflictError: Something else changed in between, or the change cannot be.
            RegistryError: The key is not one of the organisation.
            NetworkError: The registry could not be asked.
        """
        from neuraverse import statement

        private, now = self.keys.private_key_path(key), self.describe(name)
        said = {"registry": now["registry"], "name": Ref.parse(name).name, "action": action, **fields}
        try:
            text = statement.build(serial=now["serial"] + 1, **said)
        except ManifestError as error:
            raise UsageError(error.message) from error
        body = {
            "statement": text,
            "signature": statement.sign(text, private),
            "key": self.keys.public_key(key).fingerprint,
        }
        answer = self._transport.json("POST", f"/v1/skills/{Ref.parse(name).name}/statements", json=body)
        return answers.event_of(answer)

    def set_alias(self, name: str, alias: str, version: str, *, key: str = "default") -> None:
        """Point an alias at a version; see `state` for the errors."""
        self.state(name, "alias", key=key, alias=alias, version=version)

    def report(
        self,
        skill: Skill | Resolved,
        offer: Offer,
        *,
        episodes: int,
        successes: int,
        aborts: int = 0,
        errors: Mapping[str, Measured] | None = None,
        key: str = "",
    ) -> None:
        """Tell the registry how a skill did on this robot since the last report; as sums, without raw data.

        It needs the token of a robot, which has said before that it runs this version
        (`neuraverse watch --apply` does). Added to the report are the digest of the body, which is that of
        `offer`, and the versions of this software.

        Args:
            skill: What ran.
            offer: What the robot supplied to it.
            episodes: How many ended, 1 to 10,000.
            successes: How many of them succeeded.
            aborts: How many were broken off.
            errors: Physical errors by name, at most 20.
            key: A random text, to send the same report again if no answer came: as long as no other one of
                this skill and body came in between, it counts once. Without a key it counts each time.

        Raises:
            UsageError: A count or an error makes no sense; nothing was sent.
            RegistryError: The registry refused: the token is no robot's, or it never said that it runs this.
            NetworkError: It could not be asked, or has been sent too many reports.
        """
        counts = {"episodes": episodes, "successes": successes, "aborts": aborts}
        reports.report(self._transport, skill.digest, offer, **counts, errors=errors or {}, key=key)

    def is_robot(self) -> bool:
        """Whether the registry takes this client's token for a robot's.

        Raises:
            RegistryError: It does not know the token, or is too old to be asked.
            NetworkError: It could not be asked.
        """
        return reports.is_robot(self._transport)

    def installed(
        self, follows: str, state: State, *, version: str = "", digest: str = "", reason: str = ""
    ) -> None:
        """Tell the registry what this robot runs; `neuraverse watch --apply` does so by itself.

        Args:
            follows: The reference, ``org/skill@which``.
            state: ``running`` a version, ``refused`` or ``left`` it, ``rolled-back`` from it; ``stopped``.
            version: The one that this is about, if there is one.
            digest: Its digest.
            reason: Why.

        Raises:
            RegistryError: It refused: the token is no robot's, or the registry too old to be told.
            NetworkError: It could not be asked.
        """
        reports.installed(self._transport, follows, state, version, digest, reason)

    @staticmethod
    def _by_name(ref: str) -> Ref:
        wanted = Ref.parse(ref)
        if wanted.digest:
            raise UsageError(f"{ref} is a digest", remedy="write org/skill, or org/skill@version")
        return wanted

    def cursor(self) -> str:
        """Where the event feed stands now; `watch` and `events` from here miss nothing that comes later."""
        return self._events(None, 0.0)[1]

    def events(self, after: str = BEGINNING, wait: float = 0.0) -> list[Event]:
        """Events behind the cursor `after`, in order; waits up to `wait` s, at most 30, for the first."""
        return self._events(after, wait)[0]

    def _events(self, after: str | None, wait: float, **wanted: str) -> tuple[list[Event], str, bool]:
        params, headers = {"wait": str(wait), "limit": "1000", **wanted}, {}
        if after is not None:
            params["after"] = after
        if after not in (None, BEGINNING):
            headers["If-None-Match"] = f'"{after}"'
        path, ok = "/v1/events", (200, 304)
        with self._transport.stream(
            "GET", path, params=params, headers=headers, ok=ok, read_s=wait + 10.0
        ) as answer:
            if answer.status_code == 304 and after is not None and headers:
                return [], after, False
            page = self._transport.parsed(answer, path)
        events, cursor = page.get("events"), page.get("next")
        if not isinstance(events, list) or not (isinstance(cursor, str) and re.fullmatch(CURSOR, cursor)):
            raise NetworkError(f"{self.url} sent events that are none")
        return [Event.of(e) for e in events], cursor, page.get("reset") is True

    def watch(
        self,
        after: str | None = None,
        name: str | None = None,
        stop: threading.Event | None = None,
        *,
        org: str | None = None,
        interface: str | None = None,
    ) -> Iterator[Event]:
        """Events as they happen, each once and in order, for ever.

        Lost connections are made anew by themselves; where streams do not get through, it polls.

        Args:
            after: Cursor to begin behind; "0" is the beginning, None is now, for which the registry is asked.
            name: Only events of this skill, and resets.
            stop: Ends the iteration soon after it is set.
            org: Only events of this organisation's skills.
            interface: Only events of versions with this interface, ``sha256:<hex>``.

        Raises:
            NetworkError: The cursor of now could not be asked for. Later failures are waited out.
        """
        start = self.cursor() if after is None else after
        given = {"skill": name, "org": org, "interface": interface}
        wanted = {key: value for key, value in given.items() if value is not None}
        return watch(self._transport, self._events, start, wanted, stop)


def _slug(alias: str) -> str:
    if not re.fullmatch("[a-z][a-z0-9-]{0,63}", alias):
        raise UsageError(
            f"{alias[:100]!r} is no name for an alias", remedy="use lower-case letters, digits and hyphens"
        )
    return alias
