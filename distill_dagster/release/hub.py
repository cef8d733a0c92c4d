"""Push a release to a repository of the Hugging Face Hub. Nothing is pushed unless somebody asks for it."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from distill_dagster.core.errors import DistillError
from distill_dagster.core.models import HUB_ID
from distill_dagster.core.progress import report_progress
from distill_dagster.release.golden_scores import GOLDEN_SCORES_FILE
from distill_dagster.release.registry import MANIFEST_FILE, Release, verify_release

HUB_REMEDY = "Log in with `hf auth login`, or set HF_TOKEN to a token that may write. HF_ENDPOINT names another hub."
NOT_PUSHED = (GOLDEN_SCORES_FILE, "report/report.md")
"""Scores of single golden items, which only the next release needs, and the report for people."""
REPLACED = (
    *(f"{folder}/*" for folder in ("adapter", "dataset", "gguf", "merged", "onnx", "report")),
    *("README.md", "labels.json", "manifest.json", "prompt.json", "routing.json", "student.json"),
    *("chat_template.jinja", "vllm.sh", "vllm_request.json"),
)
"""Everything that a release may have. What an earlier release has in the repository, and this one has not, is deleted:
else a folder of another student would lie next to this one's card."""


def check_repository(name: str) -> None:
    """Check the name of a repository before anything is made.

    Raises:
        DistillError: it is not of the form `org/name`.
    """
    if not HUB_ID.fullmatch(name):
        raise DistillError(f"--push is {name!r}. Name a repository as org/name.")


def push_release(release: Release, repository: str, private: bool = True) -> str:
    """Upload a release as one commit, in place of an earlier one, and tag it `release-<number>`.

    Other files of the repository stay.

    Args:
        private: whether the repository is private, if it has to be created.

    Returns:
        The repository's address.

    Raises:
        DistillError: a file of the release was changed, or the hub refuses or cannot be reached.
    """
    import httpx
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    verify_release(release)
    api = HfApi()
    pushed = {name: facts for name, facts in release.manifest["files"].items() if name not in NOT_PUSHED}
    report_progress(f"pushing release {release.number} to {repository}", 0, 0)
    try:
        url = api.create_repo(repository, private=private, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            for name in pushed:
                link = Path(folder) / name
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(release.path.absolute() / name)
            # The manifest of what is pushed: whoever checks it finds every file.
            manifest = json.dumps(release.manifest | {"files": pushed}, indent=1, ensure_ascii=False)
            (Path(folder) / MANIFEST_FILE).write_text(manifest + "\n", encoding="utf-8")
            api.upload_folder(
                repo_id=repository,
                folder_path=folder,
                commit_message=f"Release {release.number} of {release.task}: {release.student}",
                delete_patterns=list(REPLACED),
            )
        api.create_tag(repository, tag=f"release-{release.number}", exist_ok=True)
    except (HfHubHTTPError, LocalTokenNotFoundError, httpx.HTTPError, OSError) as error:
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DistillError(f"{repository} could not be pushed to: {first_line} {HUB_REMEDY}") from error
    except ValueError as error:  # a name or a card that the hub does not accept
        raise DistillError(f"{repository} could not be pushed to: {' '.join(str(error).split())}") from error
    return str(url)
