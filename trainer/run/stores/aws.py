"""Amazon's own ways to credentials, region and endpoint, for S3 and what speaks its language.

obstore reads keys from the environment and asks an instance for its role; ~/.aws and what it may name (profiles, sign-on,
roles to assume, programs) are botocore's to read. Owns which region a bucket is asked in. Refuses to know objects.
"""

from __future__ import annotations

import functools
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from trainer.run.stores.base import StoreRefused

AMAZON = "https://s3.amazonaws.com"
ENDPOINT_VARIABLES = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
"""The first counts, as for Amazon's own tools."""
REGION_VARIABLES = ("AWS_REGION", "AWS_DEFAULT_REGION")
REGIONS_VARIABLE = "DOLPHIN_BUCKET_REGIONS"
"""`bucket=region,...`, found at home and sent to the node."""
PROFILE_VARIABLE = "DOLPHIN_AWS_PROFILE"
"""The profile of home, sent to the node: taken where the node's files have it. AWS_PROFILE would be an error elsewhere."""
UNSIGNED_VARIABLE = "AWS_SKIP_SIGNATURE"
"""Set for a bucket that everybody may read."""
DEFAULT_REGION = "us-east-1"
_TIMEOUT_S = 10.0
_TAKEN_FOR = timedelta(minutes=5)
"""botocore renews what expires a quarter of an hour ahead; it is asked again after this."""


def session(environment: Mapping[str, str]) -> Any:
    """A botocore session of the profile that this environment names."""
    from botocore.session import Session

    made = Session(profile=environment.get("AWS_PROFILE") or environment.get("AWS_DEFAULT_PROFILE") or None)
    wish = environment.get(PROFILE_VARIABLE)
    if wish and made.profile is None and wish in made.available_profiles:
        made.set_config_variable("profile", wish)
    return made


def provider(environment: Mapping[str, str]) -> Callable[[], dict[str, Any]] | None:
    """What obstore calls for credentials: keys in the environment, profiles, web identity, sign-on, an instance's role,
    in Amazon's order. None for a bucket read by anybody. Raises StoreRefused where there is nothing."""
    if environment.get(UNSIGNED_VARIABLE, "").lower() in ("1", "true", "yes"):
        return None
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        found = session(environment).get_credentials()
        if found is not None:
            found.get_frozen_credentials()  # a role that may not be assumed is said in its own words, not in the store's
    except (BotoCoreError, ClientError) as error:
        raise StoreRefused(f"no credentials: {' '.join(str(error).split())}") from None
    if found is None:
        raise StoreRefused(
            "no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or write ~/.aws/credentials, "
            "or run where the node has a role"
        )

    def ask() -> dict[str, Any]:
        now = found.get_frozen_credentials()
        return {
            "access_key_id": now.access_key,
            "secret_access_key": now.secret_key,
            "token": now.token,
            "expires_at": datetime.now(UTC) + _TAKEN_FOR if now.token else None,
        }

    return ask


def source(environment: Mapping[str, str]) -> str | None:
    """Where the credentials come from, in botocore's words: env, shared-credentials-file, sso, iam-role, ... None without any."""
    from botocore.exceptions import BotoCoreError

    try:
        found = session(environment).get_credentials()
    except BotoCoreError:
        return None
    return None if found is None else str(found.method)


def endpoint(environment: Mapping[str, str]) -> str | None:
    """Where another server than Amazon's is to be asked: the variables of Amazon's tools, or `endpoint_url` of the profile."""
    for name in ENDPOINT_VARIABLES:
        if environment.get(name):
            return environment[name].rstrip("/")
    return str(_profile(environment).get("endpoint_url") or "").rstrip("/") or None


def region(bucket: str, environment: Mapping[str, str]) -> str:
    """The bucket's region: as sent along, as stated for an endpoint of one's own, as the store says, else as configured."""
    for pair in environment.get(REGIONS_VARIABLE, "").split(","):
        name, _, place = pair.partition("=")
        if name == bucket and place:
            return place
    own = endpoint(environment)
    stated = next((environment[name] for name in REGION_VARIABLES if environment.get(name)), None)
    if own is not None and stated is not None:
        return stated
    return _told(own or AMAZON, bucket) or stated or _profile(environment).get("region") or DEFAULT_REGION


@functools.cache
def _told(address: str, bucket: str) -> str | None:
    """The region in the headers of a refusal or of an answer: everybody may ask for it, and a bucket never moves."""
    request = urllib.request.Request(f"{address}/{bucket}", method="HEAD")
    try:
        with urllib.request.build_opener(_Stay).open(request, timeout=_TIMEOUT_S) as answer:
            headers = answer.headers
    except urllib.error.HTTPError as error:
        with error:
            headers = error.headers
    except (OSError, ValueError):
        return None
    found: str | None = headers.get("x-amz-bucket-region")
    return found


class _Stay(urllib.request.HTTPRedirectHandler):
    """A redirect says where the bucket is; it is not followed."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _profile(environment: Mapping[str, str]) -> dict[str, Any]:
    from botocore.exceptions import BotoCoreError

    try:
        found: dict[str, Any] = session(environment).get_scoped_config()
    except BotoCoreError:
        return {}
    return found
