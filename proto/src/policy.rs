//! Figures of a step of kind ppo by their names, which are those of the message and of the columns of `curve.csv`.

use crate::PolicyStep;

impl PolicyStep {
    /// In the order of the message.
    pub fn figures(&self) -> [(&'static str, f64); 11] {
        [
            ("policy_loss", self.policy_loss),
            ("value_loss", self.value_loss),
            ("clip_fraction", self.clip_fraction),
            ("approx_kl", self.approx_kl),
            ("mean_ratio", self.mean_ratio),
            ("score", self.score),
            ("kl", self.kl),
            ("kl_coef", self.kl_coef),
            ("answer_tokens", self.answer_tokens),
            ("stopped", self.stopped),
            ("entropy", self.entropy),
        ]
    }

    /// Of what [`PolicyStep::figures`] gives.
    pub fn of_figures(figures: [f64; 11]) -> PolicyStep {
        let [
            policy_loss,
            value_loss,
            clip_fraction,
            approx_kl,
            mean_ratio,
            score,
            kl,
            kl_coef,
            answer_tokens,
            stopped,
            entropy,
        ] = figures;
        PolicyStep {
            policy_loss,
            value_loss,
            clip_fraction,
            approx_kl,
            mean_ratio,
            score,
            kl,
            kl_coef,
            answer_tokens,
            stopped,
            entropy,
        }
    }
}
