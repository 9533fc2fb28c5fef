# SPDX-License-Identifier: MIT
# Bash completion for shardcow. Options come from each command's --help, so that they cannot differ from it.

_shardcow_create_keys=(backing_file= backing_fmt= cluster_size= compat= compression_type= data_file=
    data_file_raw= extended_l2= lazy_refcounts= preallocation= refcount_bits= size=)

_shardcow_values()
{
    case $1 in
    -f | --format | -F | --second-format | --backing-format) echo qcow2 raw ;;
    -O | --output-format) echo qcow2 raw ;;
    -r | --repair) [[ $2 == check ]] && echo leaks all ;;
    -d | --discard) [[ $2 == io ]] && echo unmap ignore ;;
    --preallocation) echo off ;;
    --backend) echo auto io_uring threads null ;;
    -t | -T | --cache | --target-cache) echo auto none directsync writeback writethrough unsafe ;;
    --rw) echo randread read randwrite write randrw rw ;;
    --output)
        case $2 in
        map | bench) echo human json svg ;;
        *) echo human json ;;
        esac
        ;;
    -o | --options)
        [[ $2 == create || $2 == convert || $2 == bench ]] && echo help "${_shardcow_create_keys[@]}"
        ;;
    esac
}

_shardcow()
{
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]}
    local command=${COMP_WORDS[1]} program=${COMP_WORDS[0]} values
    local commands="create info map check dump compare convert resize serve stats io bench help"
    local sections="header extensions features l1 l2 reftable refcounts snapshots bitmaps all"

    COMPREPLY=()
    if [[ $COMP_CWORD -eq 1 || ($command == help && $COMP_CWORD -eq 2) ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$commands --help --version" -- "$cur")
        return
    fi
    # "--output=json" is three words to readline.
    if [[ $cur == = ]]; then
        cur= prev=${COMP_WORDS[COMP_CWORD - 1]}
    elif [[ $prev == = ]]; then
        prev=${COMP_WORDS[COMP_CWORD - 2]}
    fi
    values=$(_shardcow_values "$prev" "$command")
    if [[ -n $values ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$values" -- "$cur")
        return
    fi
    if [[ $cur == -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$("$program" "$command" --help 2>/dev/null |
            grep -oE '^ +(-[a-zA-Z], )?--[a-z0-9-]+|^ +-[a-zA-Z] ' |
            grep -oE -- '-{1,2}[a-zA-Z0-9][a-z0-9-]*')" \
            -- "$cur")
        return
    fi
    compopt -o filenames 2>/dev/null
    mapfile -t COMPREPLY < <(compgen -f -- "$cur")
    if [[ $command == dump ]]; then
        mapfile -t -O "${#COMPREPLY[@]}" COMPREPLY < <(compgen -W "$sections" -- "$cur")
    fi
}

complete -F _shardcow shardcow
