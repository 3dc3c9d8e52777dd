# shellcheck shell=bash
# One room: its directory, users, namespaces and processes, and the look at what is left when it ends.
# Owns $room, a directory below $work. Nothing of it is visible in the host's mount table.

git_of_tree() {
	# The tree may belong to the developer who became root for this.
	GIT_CONFIG_GLOBAL="$work/gitconfig" git -C "$tree" "$@"
}

# Sets room and root: a directory with a fresh Debian in it.
lay_out() {
	local archive
	step "a fresh Debian ($suite)"
	archive="$(root_archive "$suite")"
	room="$(mktemp -d "$work/XXXXXX")"
	root="$room/root"
	mkdir "$root"
	chmod 0755 "$root"
	tar -C "$root" --numeric-owner --xattrs --xattrs-include='*' -xpf "$archive"
	join_network "$root"
	take_packages "$root" "$suite"
	mounts=()
	share_toolchain
}

# The host's Rust toolchain and its registry, at the paths where the host has them: cargo's fingerprints contain the
# registry's path, and a build that was made there is fresh here only then. Nothing in a room can write to them.
share_toolchain() {
	local above shared
	sysroot="$(cd "$tree" && rustc --print sysroot)"
	cargo_home="${CARGO_HOME:-$HOME/.cargo}"
	if [[ "$sysroot" == /usr* ]]; then
		fail "the Rust toolchain lies in $sysroot, which is not a directory of its own; rustup makes one"
		return 1
	fi
	shared=("$sysroot")
	if ! "$own_cargo"; then
		shared+=("$cargo_home")
	fi
	for above in "${shared[@]}"; do
		mkdir -p "$root/$above"
		mounts+=("--options=bind,ro" "$above" "$above")
		# It is often in root's home, which the room's user has to pass.
		while above="$(dirname "$above")" && [[ "$above" != / ]]; do
			chmod a+x "$root/$above"
		done
	done
}

# An ordinary user as useradd makes one, who may use sudo, with the tree and what was built of it.
add_user() {
	local user="$1" home="$2" clone
	step "the user $user in $home"
	# Subordinate ids that no user of the host has by default: a test that ends its user's processes finds them by their
	# ids, in every pid namespace.
	chroot "$root" useradd -K SUB_UID_MIN=300000000 -K SUB_GID_MIN=300000000 \
		--create-home --home-dir "$home" --shell /bin/bash "$user"
	if "$with_sudo"; then
		printf '%s ALL=(ALL:ALL) NOPASSWD: ALL\n' "$user" >"$root/etc/sudoers.d/$user"
	fi
	clone="$root/srv/$user.git"
	git_of_tree clone --quiet --bare --no-hardlinks "$tree" "$clone"
	git_of_tree --git-dir="$clone" update-ref refs/heads/main "$(git_of_tree rev-parse HEAD)"
	git_of_tree --git-dir="$clone" symbolic-ref HEAD refs/heads/main
	own "$user" "$clone"
}

own() {
	local ids
	ids="$(awk -F : -v user="$1" '$1 == user { print $3 ":" $4 }' "$root/etc/passwd")"
	chown -R "$ids" "${@:2}"
}

# Gives the user's clone what cargo made of the tree. cargo itself decides what of it is fresh: a file that is the same in
# both has the tree's modification time, one that is not has the time of the clone.
take_build() {
	local user="$1" clone="$2" target="${CARGO_TARGET_DIR:-$tree/target}" part
	step "what is built of the tree, for $user"
	mkdir "$clone/target"
	for part in release agent x86_64-unknown-linux-gnu; do
		if [[ -d "$target/$part" ]]; then
			cp -a --reflink=auto "$target/$part" "$clone/target/"
		fi
	done
	comm -z -23 <(git_of_tree ls-tree -r -z --name-only HEAD | LC_ALL=C sort -z) \
		<(git_of_tree diff -z --name-only HEAD | LC_ALL=C sort -z) |
		(cd "$tree" && xargs -0 cp --parents --no-dereference --attributes-only --preserve=timestamps -t "$clone")
	own "$user" "$clone/target"
}

# What the user's own cargo would have downloaded, in the place where it looks for it.
take_registry() {
	local user="$1" home="$2"
	mkdir "$root/$home/.cargo"
	cp -a --reflink=auto "${CARGO_HOME:-$HOME/.cargo}/registry" "$root/$home/.cargo/"
	own "$user" "$root/$home/.cargo"
}

# Makes the room's namespaces. Sets holder, whose end is the end of all that runs in the room, and init, its first process.
enter() {
	step "entering"
	mkfifo "$room/ready"
	# Dies with this shell also where the shell is killed.
	setpriv --pdeathsig KILL unshare --mount --uts --ipc --cgroup --pid --fork --kill-child \
		"$here/clean-room.d/enter" "$root" "${mounts[@]}" >"$room/ready" </dev/null &
	holder=$!
	local word=''
	read -r word <"$room/ready" || true
	if [[ "$word" != ready ]]; then
		fail "the room could not be entered; see above"
		return 1
	fi
	init="$(tr -d ' ' <"/proc/$holder/task/$holder/children")"
	pid_namespace="$(readlink "/proc/$init/ns/pid")"
}

# Runs a command as the room's root.
in_room() {
	nsenter --target "$init" --mount --uts --ipc --pid -- \
		env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 TERM=dumb "$@" <&0 &
	# A wait ends when this shell is told to end; a command in the foreground would be waited for.
	wait "$!"
}

# Runs a command as USER with what a login gives: limits, groups, environment, umask, the home directory.
as() {
	local user="$1" home environment
	shift
	home="$(awk -F : -v user="$user" '$1 == user { print $6 }' "$root/etc/passwd")"
	environment=(HOME="$home" USER="$user" LOGNAME="$user" SHELL=/bin/bash LANG=C.UTF-8 TERM=xterm-256color
		PATH="/usr/local/bin:/usr/bin:/bin:/usr/local/games:/usr/games:$sysroot/bin" CARGO_NET_OFFLINE=true)
	if ! "$own_cargo"; then
		environment+=(CARGO_HOME="$cargo_home")
	fi
	if "$with_runtime_dir"; then
		environment+=(XDG_RUNTIME_DIR="/run/user/$(in_room id -u "$user")")
	fi
	# shellcheck disable=SC2016 # the room's shell expands it
	timeout --kill-after=10 "$limit" nsenter --target "$init" --mount --uts --ipc --pid -- \
		prlimit --nofile=1024: setpriv --reuid="$user" --regid="$user" --init-groups \
		env -i "${environment[@]}" bash -c 'umask "$0" && cd && exec "$@"' "$umask" "$@" </dev/null &
	wait "$!"
}

# The processes of the room's users. Nothing of theirs runs after `banger daemon stop`.
user_processes() {
	# shellcheck disable=SC2016 # the room's shell expands it
	in_room bash -c '
		for process in /proc/[0-9]*; do
			if [[ "$(stat -c %u "$process" 2>/dev/null || echo 0)" != 0 ]]; then
				printf "%s %s: %s\n" "${process#/proc/}" "$(stat -c %U "$process")" "$(tr "\0" " " <"$process/cmdline")"
			fi
		done'
}

# Ends a room, and removes it. Keeps the exit status.
leave() {
	local status=$?
	trap - EXIT TERM
	set +e
	if [[ -n "${holder-}" ]]; then
		kill -KILL "$holder"
		wait "$holder"
	fi 2>/dev/null
	if [[ -n "${room-}" ]]; then
		keep_packages "$root" "$suite"
		left_outside || status=1
		rm -rf --one-file-system "$room" || status=1
	fi
	exit "$status"
}

# Looks from the host for what a room must not leave. Its mounts and loop devices go a moment after its last process.
left_outside() {
	local turn left=''
	for turn in {1..50}; do
		left="$(room_remains)"
		if [[ -z "$left" ]]; then
			return 0
		fi
		sleep 0.2
	done
	step "what the room left (looked $turn times)"
	printf '%s\n' "$left"
	return 1
}

room_remains() {
	local process file
	if [[ -n "${pid_namespace-}" ]]; then
		for process in /proc/[0-9]*; do
			if [[ "$(readlink "$process/ns/pid")" == "$pid_namespace" ]]; then
				printf 'process %s\n' "$(tr '\0' ' ' <"$process/cmdline")"
			fi
		done 2>/dev/null
	fi
	grep -F "$room" /proc/self/mountinfo
	for file in /sys/block/loop*/loop/backing_file; do
		if [[ -e "$file" && "$(<"$file")" == "$room"* ]]; then
			printf 'loop device %s\n' "$file"
		fi
	done
}
