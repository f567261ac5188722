"""Property tests without deadlines, since machines are noisy; in CI the same examples each time."""

import os

from hypothesis import settings

settings.register_profile("project", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("project")
