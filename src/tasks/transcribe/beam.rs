//! Beam search over log-probabilities of each beam's next token.

/// The beginning of a text, and its log-probability.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Hypothesis {
    pub tokens: Vec<u32>,
    pub sum_logprob: f64,
}

/// The search of `BeamSearchDecoder` in `whisper/decoding.py`, with the patience of arXiv 2204.05424.
pub(super) struct BeamSearch {
    n_beams: usize,
    /// Number of finished texts that end the search.
    n_enough: usize,
    /// The unfinished ones, best first.
    beams: Vec<Hypothesis>,
    finished: Vec<Hypothesis>,
}

impl BeamSearch {
    pub fn new(n_beams: usize, patience: f64) -> BeamSearch {
        let n_enough = ((n_beams as f64 * patience).round() as usize).max(1);
        // All beams begin the same, so one is enough.
        let beams = vec![Hypothesis { tokens: Vec::new(), sum_logprob: 0.0 }];
        BeamSearch { n_beams, n_enough, beams, finished: Vec::new() }
    }

    /// The beginnings whose next tokens are needed.
    pub fn beams(&self) -> &[Hypothesis] {
        &self.beams
    }

    /// Takes the best next tokens of each beam with their log-probabilities, one more than there are beams. Returns
    /// whether the search continues.
    pub fn step(&mut self, candidates: &[Vec<(u32, f64)>], end: u32) -> bool {
        let mut longer: Vec<Hypothesis> = Vec::new();
        for (beam, next) in self.beams.iter().zip(candidates) {
            longer.extend(next.iter().map(|(token, logprob)| Hypothesis {
                tokens: beam.tokens.iter().copied().chain([*token]).collect(),
                sum_logprob: beam.sum_logprob + logprob,
            }));
        }
        longer.sort_by(|a, b| b.sum_logprob.total_cmp(&a.sum_logprob));
        let mut beams = Vec::new();
        for mut hypothesis in longer {
            if hypothesis.tokens.last() == Some(&end) {
                hypothesis.tokens.pop();
                if self.finished.len() < self.n_enough {
                    self.finished.push(hypothesis);
                }
            } else {
                beams.push(hypothesis);
                if beams.len() == self.n_beams {
                    break;
                }
            }
        }
        let goes_on = self.finished.len() < self.n_enough && !beams.is_empty();
        // If no beam can continue, the unfinished ones are the result.
        if !beams.is_empty() {
            self.beams = beams;
        }
        goes_on
    }

    /// The finished texts, filled up with the best unfinished ones to the number of beams.
    pub fn finish(mut self) -> Vec<Hypothesis> {
        let n_missing = self.n_beams.saturating_sub(self.finished.len());
        self.finished.extend(self.beams.into_iter().take(n_missing));
        self.finished
    }
}

/// The index of the best text: the largest log-probability divided by the length, or by Google's length penalty
/// `((5 + n) / 6) ^ alpha` (`MaximumLikelihoodRanker`).
pub(super) fn best(answers: &[Hypothesis], length_penalty: Option<f64>) -> Option<usize> {
    let score = |answer: &Hypothesis| {
        let n = answer.tokens.len() as f64;
        answer.sum_logprob
            / match length_penalty {
                Some(alpha) => ((5.0 + n) / 6.0).powf(alpha),
                None => n.max(1.0),
            }
    };
    // On a tie, the first.
    (0..answers.len()).rev().max_by(|a, b| score(&answers[*a]).total_cmp(&score(&answers[*b])))
}

#[cfg(test)]
mod tests {
    use super::*;

    const END: u32 = 9;

    /// A model over the tokens 1 and 2 in which the greedy choice is wrong: after 1, everything is unlikely.
    fn next(tokens: &[u32]) -> Vec<(u32, f64)> {
        let p: &[(u32, f64)] = match tokens {
            [] => &[(1, 0.6), (2, 0.4)],
            [1] => &[(1, 0.3), (2, 0.3), (END, 0.3)],
            [2] => &[(2, 0.98), (END, 0.01), (1, 0.01)],
            [2, 2] => &[(END, 0.98), (1, 0.01), (2, 0.01)],
            _ => &[(END, 0.9), (1, 0.05), (2, 0.05)],
        };
        p.iter().map(|(token, p)| (*token, p.ln())).collect()
    }

    fn search(n_beams: usize, patience: f64) -> Vec<Hypothesis> {
        let mut search = BeamSearch::new(n_beams, patience);
        for _ in 0..20 {
            let candidates: Vec<_> = search
                .beams()
                .iter()
                .map(|b| next(&b.tokens).into_iter().take(n_beams + 1).collect())
                .collect();
            if !search.step(&candidates, END) {
                break;
            }
        }
        search.finish()
    }

    #[test]
    fn beams_find_what_greedy_choices_miss() {
        let greedy = search(1, 1.0);
        assert_eq!(greedy[0].tokens[0], 1);
        let answers = search(2, 1.0);
        let found = &answers[best(&answers, Some(0.0)).expect("an answer")];
        assert_eq!(found.tokens, [2, 2]);
        assert!((found.sum_logprob - (0.4f64 * 0.98 * 0.98).ln()).abs() < 1e-12);
        assert!(found.sum_logprob > greedy[0].sum_logprob);
    }

    #[test]
    fn patience_collects_more_answers() {
        assert_eq!(search(2, 1.0).len(), 2);
        assert_eq!(search(2, 2.0).len(), 4);
    }

    #[test]
    fn unfinished_beams_fill_up() {
        let mut search = BeamSearch::new(2, 1.0);
        assert!(search.step(&[vec![(1, -0.5), (2, -1.0), (END, -2.0)]], END));
        let answers = search.finish();
        assert_eq!(answers.iter().map(|a| &a.tokens[..]).collect::<Vec<_>>(), [[1], [2]]);
    }

    #[test]
    fn lengths_are_taken_into_account() {
        let answer = |n: usize, sum_logprob| Hypothesis { tokens: vec![1; n], sum_logprob };
        let answers = [answer(2, -1.0), answer(10, -2.0), answer(10, -2.0)];
        assert_eq!(best(&answers, None), Some(1));
        assert_eq!(best(&answers, Some(0.0)), Some(0));
        assert_eq!(best(&[], None), None);
    }
}
