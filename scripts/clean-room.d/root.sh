# shellcheck shell=bash
# The minimal Debian that every room begins with: made once, kept outside of the tree as a tar archive.
# Uses the host's package sources, keys, proxies and certificates, because others may not be reachable from here.

# What a machine has on which somebody is about to type `make demo`. Everything else is for scripts/setup to find.
root_packages=git,make,sudo
# Older archives are made again: a fresh machine has the packages of today.
root_days=7

cache_dir() {
	printf '%s\n' "${BANGER_TEST_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/banger-tests}"
}

# The host's Debian sources with the suite's name in place of the host's, as lines of a sources.list.
# Prints nothing where the host has none: mmdebstrap then takes its default.
debian_sources() {
	local suite="$1" host
	# shellcheck source=/dev/null
	host="$(. /etc/os-release && printf '%s' "${VERSION_CODENAME-}")"
	# shellcheck disable=SC2016 # apt-get expands it
	apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT) $(ORIGIN)' 'Created-By: Packages' |
		awk -v host="$host" -v suite="$suite" '
			$4 != "Debian" && $4 !~ /^\$/ && $4 != "" { next }
			$2 ~ "^" host "(-updates|-security)?$" { sub("^" host, suite, $2); print "deb", $1, $2, $3 }' | sort -u
}

# How the host's apt fetches, as apt.conf. A proxy of the environment is not seen by apt under sudo.
fetching() {
	apt-config dump | grep -E '^Acquire::(http|https|Retries|Check-Valid-Until|Check-Date|ForceIPv[46])\b' || true
	if [[ -n "${http_proxy-}" ]]; then
		printf 'Acquire::http::Proxy "%s";\n' "$http_proxy"
	fi
	if [[ -n "${https_proxy-}" ]]; then
		printf 'Acquire::https::Proxy "%s";\n' "$https_proxy"
	fi
}

# Prints the path of the suite's archive; makes it where there is none of these days.
root_archive() {
	local suite="$1" cache sources options packages="$root_packages" key archive lock
	cache="$(cache_dir)"
	mkdir -p "$cache"
	sources="$(debian_sources "$suite")"
	options="$(fetching)"
	# Only there: a machine whose sources are http has no certificates before setup installs them.
	if [[ "$sources$options" == *https://* ]]; then
		packages+=,ca-certificates
	fi
	key="$(printf '%s\n' "$suite" "$packages" "$sources" "$options" | sha256sum | head -c 12)"
	archive="$cache/room-$suite-$key.tar"
	exec {lock}>"$cache/room-$suite.lock"
	flock "$lock"
	if [[ -z "$(find "$archive" -mtime "-$root_days" 2>/dev/null)" ]]; then
		make_root "$suite" "$packages" "$sources" "$options" "$archive.part.tar" >&2
		# Those of other keys are not asked for again.
		rm -f "$cache/room-$suite"-*[0-9a-f].tar
		mv "$archive.part.tar" "$archive"
	fi
	exec {lock}>&-
	printf '%s\n' "$archive"
}

make_root() {
	local suite="$1" packages="$2" sources="$3" options="$4" archive="$5"
	local command=(mmdebstrap --variant=minbase --include="$packages") option
	while IFS= read -r option; do
		if [[ -n "$option" ]]; then
			command+=(--aptopt="$option")
		fi
	done <<<"$options"
	command+=("$suite" "$archive")
	if [[ -n "$sources" ]]; then
		"${command[@]}" - <<<"$sources"
	else
		"${command[@]}"
	fi
}

# Gives a fresh root what the host's network needs of every machine in it.
join_network() {
	local root="$1"
	cp -L /etc/resolv.conf "$root/etc/resolv.conf"
	printf '127.0.0.1 localhost room\n::1 localhost\n' >"$root/etc/hosts"
	echo room >"$root/etc/hostname"
	if compgen -G '/usr/local/share/ca-certificates/*.crt' >/dev/null; then
		mkdir -p "$root/usr/local/share/ca-certificates"
		cp /usr/local/share/ca-certificates/*.crt "$root/usr/local/share/ca-certificates/"
	fi
	if [[ -x "$root/usr/sbin/update-ca-certificates" ]]; then
		chroot "$root" update-ca-certificates
	fi
}

# Downloaded packages are shared by all rooms, by copy: to a user it is a fast mirror.
take_packages() {
	local root="$1" from
	from="$(cache_dir)/room-$2-debs"
	mkdir -p "$from"
	find "$from" -name '*.deb' -exec cp -p -t "$root/var/cache/apt/archives" {} +
}

keep_packages() {
	local root="$1" to deb name
	to="$(cache_dir)/room-$2-debs"
	# A newer version takes an older one's place when the older was not used for long.
	find "$to" -name '*.deb' -mtime +30 -delete
	for deb in "$root"/var/cache/apt/archives/*.deb; do
		name="${deb##*/}"
		if [[ -e "$deb" && ! -e "$to/$name" ]]; then
			cp "$deb" "$to/.$name.$$"
			mv "$to/.$name.$$" "$to/$name"
		fi
	done
}
