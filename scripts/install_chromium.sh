#!/usr/bin/env bash
# Install Chromium for the browser tests where that is possible without asking, and say so aloud where it is not.
set -euo pipefail

for name in chromium chromium-browser google-chrome google-chrome-stable; do
    if command -v "$name" >/dev/null; then
        exit 0
    fi
done

. "$(dirname "$0")/apt.sh"
ready_to_install chromium "the browser tests"
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium fonts-liberation \
    >/dev/null || skip "apt-get install failed"
