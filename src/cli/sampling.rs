//! How the next token is chosen: the same names as flags and after `/set`.

use wginfer::engine::Sampling;

/// Flags; what is not given stays as the model's makers recommend.
#[derive(clap::Args)]
#[command(next_help_heading = "Sampling (defaults from the model's `generation_config.json`)")]
pub struct SamplingArgs {
    /// 0 takes the most probable token, 1 leaves the probabilities as they are
    #[arg(long, value_name = "T", allow_negative_numbers = true)]
    temperature: Option<f32>,

    /// Only the fewest most probable tokens that hold this share of the probability
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    top_p: Option<f32>,

    /// Only the K most probable tokens; 0 is off
    #[arg(long, value_name = "K", allow_negative_numbers = true)]
    top_k: Option<u32>,

    /// Only tokens with at least this share of the largest probability
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    min_p: Option<f32>,

    /// Makes tokens that were there before less probable; 1 is off
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    repetition_penalty: Option<f32>,

    /// Taken off the logits of tokens in the answer; 0 is off
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    presence_penalty: Option<f32>,

    /// Taken off the logits of tokens in the answer, times their count; 0 is off
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    frequency_penalty: Option<f32>,

    /// Added to the logit of a token; several with commas between
    #[arg(long, value_name = "ID=BIAS", value_delimiter = ',', value_parser = bias)]
    logit_bias: Vec<(u32, f32)>,

    /// The same seed gives the same text
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
}

impl SamplingArgs {
    /// The model's own `defaults` with what was asked for in their place.
    pub fn over(&self, defaults: &Sampling) -> Sampling {
        Sampling {
            temperature: self.temperature.unwrap_or(defaults.temperature),
            top_k: self.top_k.unwrap_or(defaults.top_k),
            top_p: self.top_p.unwrap_or(defaults.top_p),
            min_p: self.min_p.unwrap_or(defaults.min_p),
            repetition_penalty: self.repetition_penalty.unwrap_or(defaults.repetition_penalty),
            presence_penalty: self.presence_penalty.unwrap_or(defaults.presence_penalty),
            frequency_penalty: self.frequency_penalty.unwrap_or(defaults.frequency_penalty),
            logit_bias: if self.logit_bias.is_empty() {
                defaults.logit_bias.clone()
            } else {
                self.logit_bias.clone()
            },
            seed: self.seed.or(defaults.seed),
        }
    }
}

fn bias(text: &str) -> Result<(u32, f32), String> {
    let (id, bias) = text.split_once('=').ok_or("expected a token id, `=` and a number")?;
    let id = id.trim().parse().map_err(|_| format!("`{id}` is not a token id"))?;
    let bias = bias.trim().parse().map_err(|_| format!("`{bias}` is not a number"))?;
    Ok((id, bias))
}

/// Sets one parameter by name, as `/set` does. Ranges are the library's to check.
pub fn set(sampling: &mut Sampling, name: &str, value: &str) -> Result<(), String> {
    fn parse<T: std::str::FromStr>(slot: &mut T, value: &str) -> Result<(), String> {
        *slot = value.parse().map_err(|_| format!("`{value}` is not a number that fits"))?;
        Ok(())
    }
    match name.replace('-', "_").as_str() {
        "temperature" => parse(&mut sampling.temperature, value),
        "top_k" => parse(&mut sampling.top_k, value),
        "top_p" => parse(&mut sampling.top_p, value),
        "min_p" => parse(&mut sampling.min_p, value),
        "repetition_penalty" => parse(&mut sampling.repetition_penalty, value),
        "presence_penalty" => parse(&mut sampling.presence_penalty, value),
        "frequency_penalty" => parse(&mut sampling.frequency_penalty, value),
        "logit_bias" => {
            sampling.logit_bias = match value {
                "none" => Vec::new(),
                list => list.split(',').map(bias).collect::<Result<_, _>>()?,
            };
            Ok(())
        }
        "seed" => {
            sampling.seed = match value {
                "none" => None,
                seed => Some(seed.parse().map_err(|_| format!("`{seed}` is not a seed"))?),
            };
            Ok(())
        }
        _ => Err(format!("`{name}` is not a parameter, these are: {}", names(sampling))),
    }
}

fn names(sampling: &Sampling) -> String {
    values(sampling).iter().map(|(name, _)| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

/// Name and value of every parameter.
pub fn values(sampling: &Sampling) -> Vec<(&'static str, String)> {
    let bias: Vec<String> = sampling.logit_bias.iter().map(|(id, b)| format!("{id}={b}")).collect();
    vec![
        ("temperature", sampling.temperature.to_string()),
        ("top_p", sampling.top_p.to_string()),
        ("top_k", sampling.top_k.to_string()),
        ("min_p", sampling.min_p.to_string()),
        ("repetition_penalty", sampling.repetition_penalty.to_string()),
        ("presence_penalty", sampling.presence_penalty.to_string()),
        ("frequency_penalty", sampling.frequency_penalty.to_string()),
        ("logit_bias", if bias.is_empty() { "none".to_string() } else { bias.join(",") }),
        ("seed", sampling.seed.map_or("none".to_string(), |seed| seed.to_string())),
    ]
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
