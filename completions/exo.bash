# bash completion for exo: made by completions/generate.py from the verbs and options there are; do not edit

_exo_words() {
    local word
    for word in "$@"; do
        [[ $word == "$cur"* ]] && COMPREPLY[${#COMPREPLY[@]}]=$prefix$word
    done
}

_exo_lines() {
    # Never through compgen -W: it would expand what stands in the words.
    local line
    while IFS= read -r line; do
        [[ $line == "$cur"* ]] && COMPREPLY[${#COMPREPLY[@]}]=$prefix$line
    done
}

_exo_dynamic() {
    _exo_lines < <("${COMP_WORDS[0]/#\~/$HOME}" __complete "$1" 2>/dev/null)
}

_exo_files() {
    compopt -o filenames 2>/dev/null
    _exo_lines < <(compgen "$1" -- "$cur")
}

_exo() {
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} prefix="" verb="" i
    COMPREPLY=()
    if [[ $cur == --*=* ]]; then
        prev=${cur%%=*} prefix=${cur%%=*}= cur=${cur#*=}
    elif [[ $cur == "=" ]]; then
        cur=""
    elif [[ $prev == "=" && $COMP_CWORD -gt 2 ]]; then
        prev=${COMP_WORDS[COMP_CWORD-2]}
    fi
    for ((i = 1; i < COMP_CWORD; i++)); do
        case "$verb/${COMP_WORDS[i]}" in
            /serve-shard) verb=serve-shard ;;
            /discover) verb=discover ;;
            /plan) verb=plan ;;
            /fetch) verb=fetch ;;
            /run) verb=run ;;
            /bench) verb=bench ;;
            /ps) verb=ps ;;
            /unload) verb=unload ;;
            /rdma-check) verb=rdma-check ;;
            /completion) verb=completion ;;
            /schema) verb=schema ;;
            /help) verb=help ;;
            /key) verb=key ;;
            key/new) verb='key new' ;;
            key/export) verb='key export' ;;
            key/join) verb='key join' ;;
            key/show) verb='key show' ;;
            key/rotate) verb='key rotate' ;;
            /config) verb=config ;;
            config/show) verb='config show' ;;
        esac
    done
    case "$verb:$prev" in
        *:--name|*:--listen|*:--peer|*:--memory|*:--data-ports|*:--threads|*:--cores|*:--keep-alive|*:--for|*:--wait|*:--timeout|*:--context|*:--concurrency|*:--prompt-tokens|*:--layers|*:--min-nodes|*:--max-nodes|*:--headroom|*:--diff|*:--node|*:--limit-rate|*:--connections|*:--export|*:--import|*:--system|*:--max-tokens|*:--stop|*:--temperature|*:--top-p|*:--top-k|*:--min-p|*:--repetition-penalty|*:--presence-penalty|*:--frequency-penalty|*:--seed|*:--nodes|*:--bits|*:--group|*:--http|*:--gen-tokens|*:--depth|*:--repeat|*:--warmup) return ;;
        *:--plan|*:--ready-file|*:--topology|*:--log-file|*:-o|*:--output|*:--prompt-file|*:--api-key-file|*:--compare|*:--report) _exo_files -f; return ;;
        *:--numerics) _exo_words exact fast; return ;;
        *:--interface|*:--no-interface) _exo_dynamic interfaces; return ;;
        *:--print-unit) _exo_words systemd launchd; return ;;
        *:--color|*:--measure) _exo_words auto always never; return ;;
        *:--format) _exo_words auto table tsv svg; return ;;
        *:--objective) _exo_words latency throughput first-token balanced; return ;;
        *:--exclude) _exo_dynamic nodes; return ;;
        *:--parallel) _exo_words auto pipeline replicas tensor hybrid; return ;;
        *:--only-link) _exo_words thunderbolt ethernet wifi infiniband; return ;;
        *:--kv-bits) _exo_words 8; return ;;
        *:--geometry) _exo_dynamic models; _exo_files -d; return ;;
        *:--api) _exo_words openai; return ;;
        *:--capture|*:--from) _exo_files -d; return ;;
    esac
    case "$verb" in
        '') if [[ $cur == -* ]]; then _exo_words -V --version -h --help; else _exo_words serve-shard discover plan fetch run bench ps unload rdma-check completion schema help key config; fi ;;
        serve-shard) _exo_words --name --listen --plan --numerics --peer --interface --no-interface --ready-file --memory --data-ports --threads --cores --keep-alive --no-measure --print-unit --insecure --json -q --quiet -v --verbose --topology --color --log-file -h --help ;;
        discover) _exo_words --for --wait --timeout --watch --explain --announce --peer --interface --no-interface --format --measure --name --listen --insecure --json -q --quiet -v --verbose --topology --color --log-file -h --help ;;
        plan) _exo_words -o --output --objective --context --concurrency --prompt-tokens --layers --exclude --min-nodes --max-nodes --parallel --only-link --headroom --kv-bits --explain --format --suggest --diff --watch --json -q --quiet -v --verbose --topology --color --log-file -h --help ;;
        fetch) _exo_words --layers --plan --node --dry-run --limit-rate --connections --offline --list --verify --prune --yes --export --import --insecure --json -q --quiet -v --verbose --topology --color --log-file -h --help ;;
        run) if [[ $cur == -* ]]; then _exo_words --prompt-file --no-stdin --system --raw --think --no-think --max-tokens --stop --temperature --top-p --top-k --min-p --repetition-penalty --presence-penalty --frequency-penalty --seed --stats --plan --nodes --peer --data-ports --numerics --kv-bits --insecure --json -q --quiet -v --verbose --topology --color --log-file -h --help; else _exo_dynamic models; _exo_files -d; fi ;;
        bench) if [[ $cur == -* ]]; then _exo_words --geometry --bits --group --http --api --api-key-file --links --compare --prompt-tokens --gen-tokens --concurrency --depth --repeat --warmup --seed --plan --nodes --peer --interface --no-interface --data-ports --threads --memory --numerics --kv-bits --report -o --output --insecure --json -q --quiet -v --verbose --topology --color --log-file -h --help; else _exo_dynamic models; _exo_files -d; fi ;;
        ps) _exo_words --insecure --json -q --quiet -v --verbose --topology --color --log-file -h --help ;;
        unload) _exo_words --insecure --json -q --quiet -v --verbose --topology --color --log-file -h --help ;;
        rdma-check) _exo_words --cluster --capture --from --probe --timeout --insecure --json -q --quiet -v --verbose --topology --color --log-file -h --help ;;
        completion) if [[ $cur == -* ]]; then _exo_words --json -q --quiet -v --verbose --topology --color --log-file -h --help; else _exo_words bash zsh fish; fi ;;
        schema) if [[ $cur == -* ]]; then _exo_words --json -q --quiet -v --verbose --topology --color --log-file -h --help; else _exo_words serve-shard discover plan fetch run bench ps unload rdma-check completion schema help key config; fi ;;
        help) if [[ $cur == -* ]]; then _exo_words --json -q --quiet -v --verbose --topology --color --log-file -h --help; else _exo_words serve-shard discover plan fetch run bench ps unload rdma-check completion schema help key config environment exit-codes; fi ;;
        key) if [[ $cur == -* ]]; then _exo_words -h --help; else _exo_words new export join show rotate; fi ;;
        'key new') _exo_words --if-missing --json -q --quiet -v --verbose --topology --color --log-file -h --help ;;
        'key export') _exo_words -o --output --json -q --quiet -v --verbose --topology --color --log-file -h --help ;;
        'key join') if [[ $cur == -* ]]; then _exo_words --replace --json -q --quiet -v --verbose --topology --color --log-file -h --help; else _exo_files -f; fi ;;
        'key show') _exo_words --json -q --quiet -v --verbose --topology --color --log-file -h --help ;;
        'key rotate') _exo_words --finish --json -q --quiet -v --verbose --topology --color --log-file -h --help ;;
        config) if [[ $cur == -* ]]; then _exo_words -h --help; else _exo_words show; fi ;;
        'config show') _exo_words --origin --json -q --quiet -v --verbose --topology --color --log-file -h --help ;;
    esac
}

complete -F _exo exo
