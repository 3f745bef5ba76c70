#!/usr/bin/env bash
# Trains on a TPU slice of Google Cloud: requests it, installs this checkout, runs, restarts.
set -euo pipefail

usage() {
  cat <<'TEXT'
Trains on a TPU slice of Google Cloud: requests it, installs this checkout, runs, restarts.

  tools/launch/tpu_vm.sh --name=NAME --project=ID --zone=ZONE --accelerator=v5litepod-16 \
    --runtime=v2-alpha-tpuv5-lite [options] -- --config=FILE --workdir=gs://BUCKET/DIR [...]

Arguments after -- go to unimed_jax.train. The committed state of this checkout is installed on every
host. The script runs until training has finished (keep it in tmux): it restarts the run when a process
or host is lost, and requests the slice again after a preemption. It stops when the run rejects its
settings (exit status 2). The slice is not deleted; the last line says how to delete it.

  --spot                 ask for Spot capacity
  --max_restarts=N       default 100
  --dry-run              print the commands for a new slice, and do nothing
TEXT
}

name='' project='' zone='' accelerator='' runtime='' max_restarts=100 spot='' dry_run=no
while (($#)); do
  case $1 in
    --help) usage; exit ;;
    --dry-run) dry_run=yes ;;
    --spot) spot=yes ;;
    --name=* | --project=* | --zone=* | --accelerator=* | --runtime=* | --max_restarts=*)
      option=${1%%=*}
      printf -v "${option#--}" %s "${1#*=}"
      ;;
    --) shift; break ;;
    *) echo "error: unknown option $1; see --help" >&2; exit 2 ;;
  esac
  shift
done
[[ $name && $project && $zone && $accelerator && $runtime && $# -gt 0 ]] || { usage >&2; exit 2; }
where=(--project="$project" --zone="$zone")
tpus=(gcloud compute tpus)
installed=no
cd "$(dirname "$0")/../.."

run() {
  if [[ $dry_run == yes ]]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

on_all_hosts() {
  run "${tpus[@]}" tpu-vm ssh "$name" "${where[@]}" --worker=all --command="$1"
}

state() { # of the request for the slice; "" while there is none
  if [[ $dry_run == no ]]; then
    "${tpus[@]}" queued-resources describe "$name" "${where[@]}" --format='value(state.state)' \
      2>/dev/null || true
  fi
}

request() {
  installed=no
  run "${tpus[@]}" queued-resources create "$name" --node-id="$name" "${where[@]}" \
    --accelerator-type="$accelerator" --runtime-version="$runtime" ${spot:+--spot} --quiet
}

delete() {
  run "${tpus[@]}" queued-resources delete "$name" "${where[@]}" --force --quiet
}

wait_until_active() {
  if [[ $dry_run == yes ]]; then
    echo "# wait until its state is ACTIVE"
    return
  fi
  while true; do
    case $(state) in
      ACTIVE) return ;;
      SUSPENDED | FAILED | '') return 1 ;;
    esac
    sleep 30
  done
}

install() {
  run git archive --format=tar.gz --output="/tmp/$name.tar.gz" HEAD &&
    run "${tpus[@]}" tpu-vm scp "/tmp/$name.tar.gz" "$name:code.tar.gz" "${where[@]}" \
      --worker=all &&
    # the images bring Python 3.10; uv brings its own
    on_all_hosts "mkdir -p unimed_jax && tar xzf code.tar.gz -C unimed_jax && cd unimed_jax && \
python3 -m pip install --quiet --user uv && export PATH=\$HOME/.local/bin:\$PATH && \
uv venv --quiet --allow-existing --python 3.12 && uv pip install --quiet -e '.[tpu]'" &&
    installed=yes
}

train() { # first ends a process that an interrupted ssh may have left: it would hold the chips
  local command
  command=$(printf '%q ' .venv/bin/python -m unimed_jax.train --stopped_status=75 "$@")
  on_all_hosts "cd unimed_jax && { kill -9 \$(cat run.pid) 2>/dev/null || true; } && \
echo \$\$ > run.pid && exec $command"
}

attempt() { # no `set -e` in here: a step that fails ends the attempt
  case $(state) in
    '') request || return ;;
    SUSPENDED | FAILED) delete && request || return ;;
  esac
  wait_until_active || return
  [[ $installed == yes ]] || install || return
  train "$@"
}

for ((restarts = 0; restarts <= max_restarts; restarts++)); do
  status=0
  attempt "$@" || status=$?
  if ((status == 0 || status == 2)); then
    echo "# to delete the slice:"
    dry_run=yes
    delete
    exit $status
  fi
  echo "status $status: again in 30 seconds" >&2
  sleep 30
done
echo "error: given up after $max_restarts restarts" >&2
exit 1
