#!/usr/bin/env bash
# Install Chromium for the browser tests where that is possible without asking, and say so aloud where it is not.
set -euo pipefail

for name in chromium chromium-browser google-chrome google-chrome-stable; do
    if command -v "$name" >/dev/null; then
        exit 0
    fi
done

skip() {
    echo "chromium: $1; install it yourself, or the browser tests are skipped" >&2
    exit 0
}

command -v apt-get >/dev/null || skip "not installed, and there is no apt-get"
as_root=()
if [ "$(id -u)" -ne 0 ]; then
    sudo -n true 2>/dev/null || skip "not installed, and installing needs root"
    as_root=(sudo -n)
fi

echo "chromium: installing with apt-get"
"${as_root[@]}" apt-get update -qq || skip "apt-get update failed"
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium fonts-liberation \
    >/dev/null || skip "apt-get install failed"
