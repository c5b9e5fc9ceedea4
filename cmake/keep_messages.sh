#!/bin/sh
# A compiler launcher that keeps what the compiler says beside the object it makes, in OBJECT.log.
previous=
for argument in "$@"; do
  [ "$previous" = -o ] && object=$argument
  previous=$argument
done
"$@" > "$object.log" 2>&1 && exit
status=$?
cat "$object.log" >&2
exit $status
