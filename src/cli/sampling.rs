//! Sampling parameters: flags, and `/set` in a chat, under the same names.

use wginfer::engine::Sampling;

/// Makes a flag, a `/set` parameter and a line of `inspect` from one entry per numeric parameter. Ranges are
/// the library's to check.
macro_rules! parameters {
    ($($(#[$attribute:meta])+ $name:ident: $type:ident,)+) => {
        /// Sampling flags. Default: what the model's makers recommend.
        #[derive(clap::Args)]
        #[command(next_help_heading = "Sampling (defaults from the model's `generation_config.json`)")]
        pub struct SamplingArgs {
            $($(#[$attribute])+ #[arg(long, allow_negative_numbers = true)] $name: Option<$type>,)+

            /// Added to the logit of a token; several separated by commas
            #[arg(long, value_name = "ID=BIAS", value_delimiter = ',', value_parser = bias)]
            logit_bias: Vec<(u32, f32)>,

            /// Seed: the same seed gives the same text. Default: random
            #[arg(long, value_name = "N")]
            seed: Option<u64>,
        }

        impl SamplingArgs {
            /// The model's `defaults`, with the given parameters in their place.
            pub fn over(&self, defaults: &Sampling) -> Sampling {
                let mut sampling = defaults.clone();
                $(sampling.$name = self.$name.unwrap_or(defaults.$name);)+
                if !self.logit_bias.is_empty() {
                    sampling.logit_bias = self.logit_bias.clone();
                }
                sampling.seed = self.seed.or(defaults.seed);
                sampling
            }
        }

        /// Sets one parameter by name, as `/set` does.
        pub fn set(sampling: &mut Sampling, name: &str, value: &str) -> Result<(), String> {
            match name.replace('-', "_").as_str() {
                $(stringify!($name) => sampling.$name = number(value)?,)+
                "logit_bias" => {
                    sampling.logit_bias = match value {
                        "none" => Vec::new(),
                        list => list.split(',').map(bias).collect::<Result<_, _>>()?,
                    };
                }
                "seed" => {
                    sampling.seed = match value {
                        "none" => None,
                        seed => Some(seed.parse().map_err(|_| format!("`{seed}` is not a seed"))?),
                    };
                }
                _ => return Err(format!("`{name}` is not a parameter, these are: {}", names(sampling))),
            }
            Ok(())
        }

        /// Name and value of every parameter.
        pub fn values(sampling: &Sampling) -> Vec<(&'static str, String)> {
            let bias: Vec<String> = sampling.logit_bias.iter().map(|(id, b)| format!("{id}={b}")).collect();
            vec![
                $((stringify!($name), sampling.$name.to_string()),)+
                ("logit_bias", if bias.is_empty() { "none".to_string() } else { bias.join(",") }),
                ("seed", sampling.seed.map_or("none".to_string(), |seed| seed.to_string())),
            ]
        }
    };
}

parameters! {
    /// 0 always chooses the most probable token, 1 leaves the probabilities unchanged
    #[arg(value_name = "T")]
    temperature: f32,

    /// Only the most probable tokens that together have this probability; 1 is off
    #[arg(value_name = "P")]
    top_p: f32,

    /// Only the K most probable tokens; 0 is off
    #[arg(value_name = "K")]
    top_k: u32,

    /// Only tokens with at least this fraction of the largest probability; 0 is off
    #[arg(value_name = "P")]
    min_p: f32,

    /// Makes tokens of the prompt and the answer less probable; 1 is off
    #[arg(value_name = "X")]
    repetition_penalty: f32,

    /// Subtracted from the logits of tokens in the answer; 0 is off
    #[arg(value_name = "X")]
    presence_penalty: f32,

    /// Subtracted from the logits of tokens in the answer, times their count; 0 is off
    #[arg(value_name = "X")]
    frequency_penalty: f32,
}

fn number<T: std::str::FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("`{text}` is not a number that fits"))
}

fn bias(text: &str) -> Result<(u32, f32), String> {
    let (id, bias) = text.split_once('=').ok_or("expected a token id, `=` and a number")?;
    let id = id.trim().parse().map_err(|_| format!("`{id}` is not a token id"))?;
    let bias = bias.trim().parse().map_err(|_| format!("`{bias}` is not a number"))?;
    Ok((id, bias))
}

fn names(sampling: &Sampling) -> String {
    values(sampling).iter().map(|(name, _)| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::{Sampling, set, values};

    #[test]
    fn every_parameter_can_be_set_to_what_is_shown() {
        let mut sampling = Sampling { seed: Some(3), logit_bias: vec![(5, -1.5)], ..Sampling::default() };
        let before = sampling.clone();
        for (name, value) in values(&before) {
            set(&mut sampling, name, &value).expect(name);
        }
        assert_eq!(sampling, before);
        assert!(set(&mut sampling, "heat", "1").is_err());
        assert!(set(&mut sampling, "top-k", "-1").is_err());
    }
}
