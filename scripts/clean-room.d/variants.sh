# shellcheck shell=bash
# What differs between the rooms, and the story that all of them share.
#
# Every room starts with a fresh Debian and fresh homes: no package, no state, no cache of banger. What rooms share is
# the archive of the minimal Debian, downloaded packages, the host's Rust toolchain and registry, and, but for `build`,
# what the host has built of the tree. They share the host's network and its kernel.

# Two short stories that see what the others do not, within the minutes that CI has for them: plain is what the README
# promises; no-sudo is the only one in which setup's words are typed.
short_set=(plain no-sudo)

# Name and meaning.
variants() {
	cat <<-'END'
		plain	an ordinary user with sudo and default directories
		no-sudo	sudo is not installed: setup says what to type, root types it, the user goes on
		sudo-asks	the same where sudo wants a password
		home-odd	a home directory with a space and a letter that is not ASCII in its name
		no-runtime-dir	no XDG_RUNTIME_DIR and no /run/user, as under su or cron
		umask-077	a umask that opens new files to nobody else
		umask-000	a umask that opens new files to everybody
		two-users	two users at the same time
		state-tmpfs	~/.local/state on tmpfs
		state-ext4	~/.local/state on an ext4 of its own
		state-xfs	~/.local/state on xfs
		state-btrfs	~/.local/state on btrfs
		trixie	Debian 13
		build	everything is compiled in the room, by the user's own cargo directory
		suite	make test in the room, some 40 minutes; --all leaves it out
	END
}

# Sets what a variant has instead of the usual.
choose() {
	users=(ada) home=/home/ada umask=0022 state='' limit=900 story=first-hour
	with_sudo=true with_runtime_dir=true own_cargo=false
	case "$1" in
	no-sudo | sudo-asks) with_sudo=false ;;
	home-odd) home='/home/ada lövelace' ;;
	no-runtime-dir) with_runtime_dir=false ;;
	umask-077) umask=0077 ;;
	umask-000) umask=0000 ;;
	two-users) users=(ada bob) ;;
	state-*) state="${1#state-}" ;;
	trixie) suite=trixie ;;
	build) own_cargo=true limit=3000 ;;
	suite) story=suite limit=5400 ;;
	esac
}

step() { printf '\n#### %s\n' "$*"; }

skip() {
	printf '%s\n' "$*"
	exit "$skipped"
}

# A variant from its beginning to the look at what it left. Runs in a shell of its own.
stay_in_room() {
	set -euo pipefail
	trap leave EXIT
	trap 'exit 143' TERM
	trap '' INT
	choose "$1"
	lay_out
	if [[ "$suite" == trixie ]]; then
		# Debian 13 begins with this; before, /tmp was on the disk.
		mounts+=(--types=tmpfs tmp tmp)
	fi
	local user
	for user in "${users[@]}"; do
		add_user "$user" "$(home_of "$user")"
	done
	if [[ -n "$state" ]]; then
		state_on "$state"
	fi
	if [[ "$1" == no-sudo ]]; then
		SUDO_FORCE_REMOVE=yes chroot "$root" dpkg --purge sudo
	fi
	enter
	for user in "${users[@]}"; do
		settle "$user" "$(home_of "$user")"
	done
	if ! "$with_sudo"; then
		root_types_what_setup_says
	fi
	users_type
	nothing_runs
}

# The first user has the variant's home.
home_of() {
	if [[ "$1" == "${users[0]}" ]]; then
		printf '%s' "$home"
	else
		printf '/home/%s' "$1"
	fi
}

# Puts ~/.local/state on a file system of its own.
state_on() {
	local type="$1" image="$room/state.img" at="$home/.local/state"
	if [[ "$type" == tmpfs ]]; then
		mounts+=(--types=tmpfs tmpfs "$at")
		return
	fi
	command -v "mkfs.$type" >/dev/null || skip "mkfs.$type is not installed"
	[[ -e /dev/loop-control ]] || skip "there are no loop devices"
	grep -qw "$type" /proc/filesystems || modprobe "$type" 2>/dev/null || skip "the kernel has no $type"
	truncate -s 8G "$image"
	"mkfs.$type" -q "$image"
	# Its loop device goes with its last mount.
	mounts+=("--options=loop" "$image" "$at")
}

# The login's part: directories that belong to the user, the clone, and what is built of it.
settle() {
	local user="$1" home="$2" above
	step "$user logs in and clones the repository"
	if "$with_runtime_dir"; then
		in_room install -d -m 0700 -o "$user" -g "$user" "/run/user/$(in_room id -u "$user")"
	fi
	if [[ -n "$state" ]]; then
		in_room chown "$user:" "$home/.local" "$home/.local/state"
	fi
	as "$user" git clone --quiet "/srv/$user.git" banger
	if "$own_cargo"; then
		take_registry "$user" "$home"
	else
		take_build "$user" "$root/$home/banger"
	fi
	install -m 0755 "$here/clean-room.d/$story" "$root/srv/story"
}

# Without sudo `make demo` ends with the line that root has to type. The line is typed as it is printed.
root_types_what_setup_says() {
	local said status=0 line
	step "make demo without sudo"
	as "${users[0]}" make -C banger demo >"$room/said" 2>&1 || status=$?
	said="$(<"$room/said")"
	printf '%s\nstatus %s\n' "$said" "$status"
	if ((status == 0)); then
		fail "make demo succeeded in a room where nothing was installed"
		return 1
	fi
	step "root types what setup says"
	line="$(sed -n 's/^setup: *\(.*apt-get .*install .*\)$/\1/p' <<<"$said" | head -n 1)"
	printf '%s\n' "$line"
	[[ -n "$line" ]]
	# "y" is what root answers.
	in_room bash -c "$line" < <(yes)
}

# Everybody at the same time.
users_type() {
	local user writers=() status=0
	for user in "${users[@]}"; do
		as "$user" bash /srv/story > >(sed -u "s/^#### /&$user: /; t; s/^/$user: /") 2>&1 &
		writers+=("$!")
	done
	for user in "${writers[@]}"; do
		wait "$user" || status=$?
	done
	return "$status"
}

nothing_runs() {
	local processes
	step "nothing runs after 'banger daemon stop'"
	processes="$(user_processes)"
	if [[ -n "$processes" ]]; then
		printf '%s\n' "$processes"
		return 1
	fi
}
