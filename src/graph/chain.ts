/**
 * Expectations over an absorbing Markov chain: what is still to come, in the mean, from each state until the chain ends.
 *
 * With P the transition probabilities between states and r what a visit of each brings, the expected sum x solves
 * (I - P) x = r. Rows of P sum to at most 1, and the end must be within reach of every state: then I - P is regular, and
 * elimination is stable. Cost: states^3 / 3 multiplications, 5 million for the largest graph.
 */

/** One transition by the numbers of its states. @internal */
export interface Transition {
  readonly from: number;
  readonly to: number;
  readonly probability: number;
}

/**
 * Solves for several columns r at once.
 *
 * @param columns one column a quantity, each with one number a state
 * @returns the expected sums, in the shape of `columns`
 * @internal
 */
export function expectedSums(
  states: number,
  transitions: readonly Transition[],
  columns: readonly (readonly number[])[],
): number[][] {
  const width = states + columns.length;
  const rows: Float64Array[] = Array.from({ length: states }, (_, state) => {
    const row = new Float64Array(width);
    row[state] = 1;
    columns.forEach((column, at) => {
      row[states + at] = column[state] as number;
    });
    return row;
  });
  for (const { from, to, probability } of transitions) {
    const row = rows[from] as Float64Array;
    row[to] = (row[to] as number) - probability;
  }

  for (let column = 0; column < states; ++column) {
    let best = column;
    for (let at = column + 1; at < states; ++at) {
      if (Math.abs(value(rows, at, column)) > Math.abs(value(rows, best, column))) best = at;
    }
    const pivot = rows[best] as Float64Array;
    rows[best] = rows[column] as Float64Array;
    rows[column] = pivot;
    for (let at = column + 1; at < states; ++at) {
      const row = rows[at] as Float64Array;
      const factor = (row[column] as number) / (pivot[column] as number);
      if (factor === 0) continue;
      for (let entry = column; entry < width; ++entry) {
        row[entry] = (row[entry] as number) - factor * (pivot[entry] as number);
      }
    }
  }
  return columns.map((_, at) => {
    const sums = new Array<number>(states).fill(0);
    for (let state = states - 1; state >= 0; --state) {
      let sum = value(rows, state, states + at);
      for (let to = state + 1; to < states; ++to) sum -= value(rows, state, to) * (sums[to] as number);
      sums[state] = sum / value(rows, state, state);
    }
    return sums;
  });
}

function value(rows: readonly Float64Array[], row: number, column: number): number {
  return (rows[row] as Float64Array)[column] as number;
}

/** States from which the end cannot be reached, in order. @internal */
export function endlessStates(ends: readonly boolean[], transitions: readonly Transition[]): number[] {
  const ending = [...ends];
  for (let changed = true; changed;) {
    changed = false;
    for (const { from, to, probability } of transitions) {
      if (probability > 0 && ending[to] && !ending[from]) changed = ending[from] = true;
    }
  }
  return ending.flatMap((does, state) => (does ? [] : [state]));
}
