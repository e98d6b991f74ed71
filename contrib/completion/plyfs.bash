# SPDX-License-Identifier: MIT
# Completion of plyfs, and of fuse-overlayfs where that is plyfs, for bash. The program itself says
# which verbs, flags and options it has.

# The flags in the help of a verb.
_plyfs_flags() {
	plyfs help "$1" 2>/dev/null | sed -n 's/^  \(-.*\)/\1/p' | grep -oE '(^|, )--?[a-zA-Z][a-z-]*' |
		grep -oE -- '--?[a-zA-Z][a-z-]*'
}

# What may stand for $1, the last word of a list of -o, of the dialect $2.
_plyfs_option() {
	local name=${1%%=*} words

	case $1 in
	lowerdir=*)
		compgen -d -P "${1%"${1##*[:=]}"}" -- "${1##*[:=]}"
		;;
	lowerdir+=* | datadir+=* | upperdir=* | workdir=*)
		compgen -d -P "$name=" -- "${1#*=}"
		;;
	*=*)
		words=$(plyfs help options ${2:+"$2"} 2>/dev/null | grep "^$name=" | cut -f1)
		words=${words#*=}
		compgen -P "$name=" -W "${words//|/ }" -- "${1#*=}"
		;;
	*)
		words=$(plyfs help options ${2:+"$2"} 2>/dev/null | sed '/[*]/d; s/\t.*//; s/=.*/=/')
		compgen -W "$words" -- "$1"
		;;
	esac
}

_plyfs() {
	# bash takes words apart at '=' and ':', and wants only what comes after the last of them.
	local cur=${COMP_LINE:0:COMP_POINT} before verb=mount dialect='' found=''
	cur=${cur##* }
	before=${COMP_LINE:0:COMP_POINT-${#cur}}
	before=${before%% }

	if [[ ${1##*/} == fuse-overlayfs ]]; then
		dialect=fuse-overlayfs
		verb=fuse-overlayfs
	elif [[ $before != *' '* ]]; then
		found=$(compgen -W 'mount status fsck convert help version' -- "$cur")
	else
		read -r _ verb _ <<<"$before"
	fi

	if [[ -n $found ]]; then
		:
	elif [[ $before == *' -o' || $before == *' --options' ]]; then
		local head=''
		[[ $cur == *,* ]] && head=${cur%,*},
		found=$(_plyfs_option "${cur##*,}" "$dialect")
		found=${found:+$head${found//$'\n'/$'\n'$head}}
	elif [[ $cur == --to=* ]]; then
		found=$(compgen -P --to= -W 'kernel fuse-overlayfs' -- "${cur#--to=}")
	elif [[ $cur == -* ]]; then
		found=$(compgen -W "$(_plyfs_flags "$verb")" -- "$cur")
	elif [[ $verb == help ]]; then
		found=$(compgen -W 'mount status fsck convert options fuse-overlayfs' -- "$cur")
	else
		found=$(compgen -d -- "$cur")
	fi

	local cut=${cur%"${cur##*[:=]}"} line
	COMPREPLY=()
	while IFS= read -r line; do
		[[ -n $line ]] && COMPREPLY+=("${line#"$cut"}")
	done <<<"$found"
	if [[ -d ${COMPREPLY[0]-} ]]; then
		compopt -o filenames 2>/dev/null # goes on with a '/'
	elif [[ $before != *' -o' && $before != *' --options' ]]; then
		compopt +o nospace 2>/dev/null # goes on with a ',' otherwise
	fi
}

complete -o nospace -F _plyfs plyfs fuse-overlayfs
