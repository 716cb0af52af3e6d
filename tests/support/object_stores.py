"""S3 and Google Cloud Storage over real HTTP: moto's server, and the environment that points both clients at an address.

Google's XML API and S3's are close enough for the same server: Google's client is checked up to the wire, not against
Google's own emulator.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

BUCKET = "bucket"


@contextlib.contextmanager
def serving() -> Iterator[tuple[str, int]]:
    """Host and port of a server that holds one empty bucket."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    client = boto3.client(
        "s3",
        endpoint_url=f"http://{host}:{port}",
        region_name="us-east-1",
        aws_access_key_id="a",
        aws_secret_access_key="b",
    )
    client.create_bucket(Bucket=BUCKET)
    yield host, port
    server.stop()


def environment(url: str, retry_s: float) -> dict[str, str]:
    """What makes both clients speak to `url`, and try a request again for so long."""
    return {
        "AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "AKIATEST", "AWS_SECRET_ACCESS_KEY": "word", "AWS_REGION": "us-east-1",
        "STORAGE_EMULATOR_HOST": url, "DOLPHIN_STORE_RETRY_S": str(retry_s),
    }  # fmt: skip
