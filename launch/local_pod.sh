#!/usr/bin/env bash
# Runs N processes on this machine exactly as N hosts would run them.
usage='usage: launch/local_pod.sh N [--devices=D] [--grace=SECONDS] [--dry-run] -- COMMAND ...

  N          processes; each gets JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID
  --devices  fake CPU devices of each (default: 1)
  --grace    so long may the others run on when a process has failed, and what a process that a signal ended has
             started (default: 120)
  --dry-run  print the commands, and do nothing

  launch/local_pod.sh 2 --devices=4 -- python -m cgrpo_jax.convert --distributed --from_hf=FOLDER --to=FOLDER

Each line of output begins with the number of its process. SIGTERM and SIGINT are passed on, also to
what a wrapper has started that they end. The exit status is that of the first process that failed, or 0. JAX_PLATFORMS (cpu), JAX_CPU_COLLECTIVES_IMPLEMENTATION (gloo) and other flags in
XLA_FLAGS stay as you set them.'

set -euo pipefail

fail() {
  printf 'error: %s\n' "$1" >&2
  exit 2
}

number() { # NAME VALUE
  [[ $2 =~ ^[1-9][0-9]{0,5}$ ]] || fail "$1 is '$2'; give a whole number of at least 1"
}

((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 501)) || fail "this is bash $BASH_VERSION; use bash 5.1 or later"
processes='' devices=1 grace=120 dry_run=no
moment=2 # seconds in which processes that fail for one reason all have
while (($#)); do
  case $1 in
    --) shift && break ;;
    --help | -h) printf '%s\n' "$usage" && exit 0 ;;
    --devices=*) devices=${1#*=} ;;
    --grace=*) grace=${1#*=} ;;
    --dry-run | --dry_run) dry_run=yes ;;
    -*) fail "unknown flag $1; flags are --devices, --grace, --dry-run, --help" ;;
    *) [[ -z $processes ]] || fail "unexpected $1; write the command after --" && processes=$1 ;;
  esac
  shift
done
[[ -n $processes ]] || fail 'the number of processes is missing; see --help'
number 'the number of processes' "$processes"
number --devices "$devices"
number --grace "$grace"
(($#)) || fail 'no command to run; write it after --'

port=PORT
if [[ $dry_run == no ]]; then
  port=$("${PYTHON:-python3}" -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')
fi
settings=(
  "JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}"
  "JAX_CPU_COLLECTIVES_IMPLEMENTATION=${JAX_CPU_COLLECTIVES_IMPLEMENTATION:-gloo}"
  "XLA_FLAGS=${XLA_FLAGS:+$XLA_FLAGS }--xla_force_host_platform_device_count=$devices"
  "JAX_COORDINATOR_ADDRESS=localhost:$port"
  "JAX_NUM_PROCESSES=$processes"
)
if [[ $dry_run == yes ]]; then
  for ((i = 0; i < processes; i++)); do
    printf '%q ' env "${settings[@]}" "JAX_PROCESS_ID=$i" "$@"
    printf '\n'
  done
  exit 0
fi

label() { # the lines of process $1; it ends when no process can write any more
  trap '' INT TERM
  local line
  while IFS= read -r line || [[ -n $line ]]; do printf '[%s] %s\n' "$1" "$line"; done
}

# Job control gives every process a group of its own: the terminal's Ctrl-C then reaches them through this script alone,
# they start with SIGINT as it was, which a background job otherwise ignores, and a signal reaches what they start.
set -m
declare -A number_of=() group_of=() # a process's number, by its id: while it runs, while it or what it started may run
readers=() timer=''
for ((i = 0; i < processes; i++)); do
  exec {pipe}> >(label "$i")
  readers+=("$!")
  env "${settings[@]}" "JAX_PROCESS_ID=$i" "$@" >&"$pipe" 2>&1 </dev/null &
  number_of[$!]=$i group_of[$!]=$i
  exec {pipe}>&-
done

# SIGINT goes to whole groups, as from a terminal. SIGTERM does not: from a wrapper that passes it on, such as
# `uv run`, it would arrive twice, and the second one ends at once a process that is about to save.
passed=''
pass_on() {
  passed+=" $1"
  for pid in "${!group_of[@]}"; do
    if [[ $1 == TERM && -n ${number_of[$pid]:-} ]]; then
      kill -s TERM "$pid" 2>/dev/null || true
    else
      kill -s "$1" -- "-$pid" 2>/dev/null || true
    fi
  done
}
trap 'pass_on INT' INT
trap 'pass_on TERM' TERM

outlived() { # forgets the groups that have ended; fails when none is left
  for pid in "${!group_of[@]}"; do kill -s 0 -- "-$pid" 2>/dev/null || unset "group_of[$pid]"; done
  ((${#group_of[@]}))
}

status=0 stopping=TERM said=''
while ((${#number_of[@]})); do
  ended='' code=0
  wait -n -p ended "${!number_of[@]}" ${timer:+"$timer"} || code=$?
  [[ -n ${ended:-} ]] || continue # a signal came, and was passed on
  if [[ $ended == "$timer" ]]; then
    if [[ -z $said ]]; then # what failed the same way has ended by now
      said=yes
      printf 'local_pod: the others have %s seconds to notice\n' "$grace" >&2
      sleep "$grace" &
      timer=$!
      continue
    fi
    [[ $passed != *TERM* ]] || stopping=KILL
    printf 'local_pod: sending %s to process %s\n' "$stopping" "${number_of[*]}" >&2
    pass_on "$stopping"
    stopping=KILL
    sleep "$grace" &
    timer=$!
    continue
  fi
  if ((code)); then
    printf 'local_pod: process %s ended with status %s\n' "${number_of[$ended]}" "$code" >&2
    if ((status == 0)); then
      status=$code
      if ((${#number_of[@]} > 1)); then
        sleep "$moment" &
        timer=$!
      fi
    fi
  fi
  unset "number_of[$ended]"
  # A wrapper that SIGTERM has ended, such as `bash -c`, has passed nothing on.
  [[ $code != 143 || $passed != *TERM* ]] || kill -s TERM -- "-$ended" 2>/dev/null || true
  outlived || true
done
# What a wrapper has started may save before it ends, longer than the wrapper.
if [[ -n $passed ]]; then
  for ((second = 0; second < grace; second++)); do
    outlived || break
    sleep 1
  done
  if outlived; then
    printf 'local_pod: sending KILL to what process %s left running\n' "${group_of[*]}" >&2
    pass_on KILL
  fi
fi
set +m
[[ -z $timer ]] || { kill "$timer" && wait "$timer"; } 2>/dev/null || true
# What a process leaves behind may hold its output open: it gets a moment, not for ever.
{ sleep 5 && kill -s KILL "${readers[@]}"; } >/dev/null 2>&1 &
timer=$!
wait "${readers[@]}" 2>/dev/null || true
kill "$timer" 2>/dev/null || true
exit "$status"
