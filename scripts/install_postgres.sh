#!/usr/bin/env bash
# Install Postgres for the tests of shared stores where that is possible without asking, and say so aloud where it is not.
# No server is started: the tests run one of their own, in a temporary folder.
set -euo pipefail

if command -v pg_ctl >/dev/null || compgen -G '/usr/lib/postgresql/*/bin/pg_ctl' >/dev/null; then
    exit 0
fi

. "$(dirname "$0")/apt.sh"
ready_to_install postgres "the tests that need it"
# Debian's package makes a cluster and starts it, unless it is told not to; we want the programs only.
"${as_root[@]}" mkdir -p /etc/postgresql-common
if [ ! -e /etc/postgresql-common/createcluster.conf ]; then
    echo 'create_main_cluster = false' | "${as_root[@]}" tee /etc/postgresql-common/createcluster.conf >/dev/null
fi
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends postgresql \
    >/dev/null || skip "apt-get install failed"
