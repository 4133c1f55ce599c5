"""Files in object stores: s3fs and gcsfs as people use them, against servers of other hands."""

import cv2
import fsspec
import numpy as np
import pytest

from mirnet_fast.collection import How, listed, restore_files

from ..image_files import random_pixels

pytestmark = [pytest.mark.exhaustive, pytest.mark.xdist_group("stores")]


def s3(monkeypatch):
    pytest.importorskip("s3fs", reason="s3fs is not installed: pip install 'mirnet-fast[foreign]'")
    server = pytest.importorskip("moto.server", reason="moto is not installed").ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    return server


def gs(monkeypatch):
    pytest.importorskip("gcsfs", reason="gcsfs is not installed: pip install 'mirnet-fast[foreign]'")
    emulator = pytest.importorskip(
        "gcp_storage_emulator.server", reason="gcp-storage-emulator is not installed"
    )
    server = emulator.create_server("localhost", 0, in_memory=True, default_bucket="photos")
    server.start()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://localhost:{server._api._httpd.server_port}")
    return server


@pytest.fixture(params=[s3, gs], ids=["s3", "gs"])
def store(request, monkeypatch):
    """(file system, its protocol), with a bucket of the name `photos`."""
    protocol = request.param.__name__
    server = request.param(monkeypatch)
    fsspec.get_filesystem_class(protocol).clear_instance_cache()
    files = fsspec.filesystem(protocol)
    if not files.exists("photos"):
        files.mkdir("photos")
    yield files, protocol
    fsspec.get_filesystem_class(protocol).clear_instance_cache()
    server.stop()


def test_there_and_back(store, restorer, tmp_path):
    files, protocol = store
    pixels = random_pixels(np.uint8, 20, 24, 3)
    photo = cv2.imencode(".png", pixels)[1].tobytes()
    files.pipe({"photos/in/a.png": photo, "photos/in/b/ü c.png": photo, "photos/in/bad.png": b"bad"})
    items = listed(
        [f"{protocol}://photos/in", f"{protocol}://photos/gone.png"], f"{protocol}://photos/out"
    ).items
    summary = restore_files(items, restorer)
    assert sorted(record.input for record in summary.failed) == [
        f"{protocol}://photos/gone.png",
        f"{protocol}://photos/in/bad.png",
    ]
    assert summary.restored == 2
    files.invalidate_cache()
    assert sorted(files.find("photos/out")) == ["photos/out/a.png", "photos/out/b/ü c.png"]
    for made in files.find("photos/out"):
        made = cv2.imdecode(np.frombuffer(files.cat(made), np.uint8), cv2.IMREAD_UNCHANGED)
        assert np.array_equal(made, pixels)
    assert restore_files(items, restorer).skipped == 2
    assert restore_files(items, restorer, How(overwrite=True)).restored == 2
    matched = listed([f"{protocol}://photos/in/*.png"], str(tmp_path)).items
    assert restore_files(matched, restorer).restored == 1 and (tmp_path / "a.png").exists()
