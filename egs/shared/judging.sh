# shellcheck shell=bash disable=SC2154 # variables of the script that sources it
# What a training is worth beyond its nats: judges that no training of ours has touched, release checks, a
# blind listening test. To be sourced by recipe.sh. $judge is how many recordings of the test split are
# heard; 0 leaves the stage out. A judge that is not installed is "not run", with the way to get it
# (docs/evaluation.md).

# judge_samples STAGE [FLAG...]: the samples of $exp_dir, with flags of `rvqlm judge`.
judge_samples() {
  ((judge)) || return 0
  if begin_stage "$1" "Judge"; then
    rvqlm judge --samples "$exp_dir" --references "$tokens" --split test --num "$judge" "${@:2}"
    listening_test --kind rating --recordings --exp-dirs "$exp_dir"
  fi
}

# judge_speech STAGE [FLAG...]: the same, and what a model that speaks must not do, by its recogniser. Checks
# that fail end no recipe: they are of the model.
judge_speech() {
  judge_samples "$@"
  ((judge)) || return 0
  if begin_stage "$1" "Release checks"; then
    local table=$exp_dir/check/check.json
    rm -f "$table"
    rvqlm check "$exp_dir" --checkpoint "${checkpoint:-best}" --manifest-dir "$tokens" --split test \
      --recognizer "$exp_dir/recognizer" --num "$judge" --seed "$seed" "${drawing[@]}" || [[ -f $table ]]
  fi
}

# listening_test FLAG...: a page for raters, EXP/listening.html, with flags of `rvqlm listen make`.
listening_test() {
  rvqlm listen make --out "$exp_dir/listening.html" --manifest-dir "$tokens" --split test \
    --seed "$seed" "$@"
}
