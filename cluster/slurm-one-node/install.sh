#!/usr/bin/env bash
# Install the SLURM daemons of Debian or Ubuntu (about 15 MB), unless they are there.
set -euo pipefail

if command -v slurmctld slurmd sbatch > /dev/null; then
  exit 0
fi
if ! command -v apt-get > /dev/null; then
  echo "the SLURM tests need slurmctld, slurmd and sbatch, which are absent, and no apt-get is here to install them; install your system's SLURM packages" >&2
  exit 1
fi
if [ "$(id -u)" != 0 ]; then
  echo "the SLURM tests need slurmctld, slurmd and sbatch, which are absent, and only root can install them; run: sudo $0" >&2
  exit 1
fi
export DEBIAN_FRONTEND=noninteractive
if ! { apt-get update -qq && apt-get install -y -qq --no-install-recommends slurmctld slurmd slurm-client iproute2; } > /tmp/slurm-install.$$ 2>&1; then
  tail -5 /tmp/slurm-install.$$ >&2
  rm -f /tmp/slurm-install.$$
  echo "the SLURM tests need the packages slurmctld, slurmd and slurm-client, and apt-get could not install them (see above)" >&2
  exit 1
fi
rm -f /tmp/slurm-install.$$
