"""What pyproject.toml cannot say of the wheel: three files that are not in the packages of a checkout.

`sky/task.yaml` and `constraints.txt` lie at the top of the project and are copied into the package that reads them. The images of a release are
stated by the workflow that built them, as DOLPHIN_RELEASE_IMAGES="cpu=NAME@sha256:... cuda=NAME@sha256:..."; a digest and not a
tag, so that a release trains with the same image for ever.
"""

import json
import os
import re
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

VARIANTS = ("cpu", "cuda")


class BuildPackages(build_py):
    def run(self) -> None:
        super().run()
        if self.editable_mode:  # the packages are used where they lie, and nothing is written there
            return
        built = Path(self.build_lib) / "launcher" / "backends"
        self.copy_file("sky/task.yaml", str(built / "sky" / "task.yaml"))
        self.copy_file("constraints.txt", str(built / "sky" / "constraints.txt"))
        images = images_of(os.environ.get("DOLPHIN_RELEASE_IMAGES", ""))
        if images:
            (built / "images.json").write_text(json.dumps(images, indent=2) + "\n")


def images_of(stated: str) -> dict[str, str]:
    """Variant to image, of all variants or of none."""
    images = dict(word.partition("=")[::2] for word in stated.split())
    if images and set(images) != set(VARIANTS):
        raise SystemExit(f"DOLPHIN_RELEASE_IMAGES: states {sorted(images)}; a release states {list(VARIANTS)}")
    for image in images.values():
        if not re.fullmatch(r"[\w.:/-]+@sha256:[0-9a-f]{64}", image):
            raise SystemExit(f"DOLPHIN_RELEASE_IMAGES: {image!r} is not NAME@sha256:DIGEST")
    return images


setup(cmdclass={"build_py": BuildPackages})
