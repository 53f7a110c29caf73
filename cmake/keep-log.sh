# Runs a compiler and keeps what it prints in OBJECT.log; shows it too if it fails.
for argument; do
  [ "$previous" = -o ] && object=$argument
  previous=$argument
done
"$@" >"$object.log" 2>&1
code=$?
[ $code -eq 0 ] || cat "$object.log" >&2
exit $code
