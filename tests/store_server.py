"""An S3 server on this machine, with one bucket."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ENV = {
    "AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true", "NO_PROXY": "127.0.0.1", "AWS_CONFIG_FILE": "/dev/null",
    "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
}  # fmt: skip


class Store:
    """A bucket called `models`, and what a client needs in its environment to reach it."""

    def __init__(self, url: str) -> None:
        import boto3
        from botocore.config import Config

        self.url = url
        self.env = {**ENV, "AWS_ENDPOINT_URL": url}
        self.client: Any = boto3.client(
            "s3", endpoint_url=url, aws_access_key_id="testing", aws_secret_access_key="testing",
            region_name="us-east-1", config=Config(proxies={}),
        )  # fmt: skip
        self.client.create_bucket(Bucket="models")

    def put(self, folder: Path, prefix: str) -> str:
        """Every file of a folder under a prefix; its address."""
        for file in folder.rglob("*"):
            if file.is_file():
                self.client.put_object(
                    Bucket="models", Key=f"{prefix}/{file.relative_to(folder)}", Body=file.read_bytes()
                )
        return f"s3://models/{prefix}"

    def read(self, key: str) -> bytes:
        return self.client.get_object(Bucket="models", Key=key)["Body"].read()

    def write(self, key: str, data: bytes) -> None:
        self.client.put_object(Bucket="models", Key=key, Body=data)

    def delete(self, key: str) -> None:
        self.client.delete_object(Bucket="models", Key=key)

    def names(self, prefix: str) -> list[str]:
        """What is under a prefix, without it."""
        found = self.client.list_objects_v2(Bucket="models", Prefix=f"{prefix}/").get("Contents", [])
        return sorted(row["Key"].removeprefix(f"{prefix}/") for row in found)


@contextmanager
def s3_server() -> Iterator[Store]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield Store(f"http://{host}:{port}")
    finally:
        server.stop()
