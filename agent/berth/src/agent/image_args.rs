//! Options about images, named as the kubelet's: its flags, and its configuration's fields where it has no flag.

use berth_core::{
    image::{collect::CollectionPolicy, pull_record::VerificationPolicy},
    time::parse_go_duration,
};
use std::{path::PathBuf, time::Duration};

/// Options about images.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct ImageArgs {
    /// Usage of the images' file system in percent from which unused images are removed; 100: never
    /// (`imageGCHighThresholdPercent`).
    #[arg(long, value_name = "PERCENT", default_value_t = 85, value_parser = percent())]
    image_gc_high_threshold: u8,
    /// Usage in percent down to which they are removed (`imageGCLowThresholdPercent`).
    #[arg(long, value_name = "PERCENT", default_value_t = 80, value_parser = percent())]
    image_gc_low_threshold: u8,
    /// Age below which no image is removed for space (`imageMinimumGCAge`).
    #[arg(long, value_name = "DURATION", default_value = "2m", value_parser = duration)]
    minimum_image_ttl_duration: Duration,
    /// Time without use after which an image is removed whatever the usage is (`imageMaximumGCAge`); 0: never.
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = duration)]
    image_maximum_gc_age: Duration,
    /// Which images that are on the node serve a pod only after a look at its credentials
    /// (`imagePullCredentialsVerificationPolicy`): NeverVerify, NeverVerifyPreloadedImages, NeverVerifyAllowlistedImages or
    /// AlwaysVerify.
    #[arg(long, value_name = "POLICY", default_value = "NeverVerifyPreloadedImages")]
    image_pull_credentials_verification_policy: String,
    /// Images that serve every pod with the policy NeverVerifyAllowlistedImages; a prefix ends in `/*`
    /// (`preloadedImagesVerificationAllowlist`).
    #[arg(long, value_name = "IMAGE", value_delimiter = ',')]
    preloaded_images_verification_allowlist: Vec<String>,
    /// File or directory with the configuration of credential provider plugins.
    #[arg(long, value_name = "PATH")]
    pub(super) image_credential_provider_config: Option<PathBuf>,
    /// Directory with the programs of credential provider plugins.
    #[arg(long, value_name = "DIR")]
    pub(super) image_credential_provider_bin_dir: Option<PathBuf>,
}

fn percent() -> clap::builder::RangedI64ValueParser<u8> {
    clap::value_parser!(u8).range(0..=100)
}

fn duration(text: &str) -> Result<Duration, String> {
    parse_go_duration(text).ok_or_else(|| "must be a duration such as 90s, 2m or 1h30m".to_owned())
}

impl ImageArgs {
    /// Which present images serve a pod only after a look at its credentials.
    ///
    /// # Errors
    /// The options contradict each other.
    pub(crate) fn verification(&self) -> Result<VerificationPolicy, String> {
        let list = &self.preloaded_images_verification_allowlist;
        VerificationPolicy::parse(&self.image_pull_credentials_verification_policy, list)
    }

    /// The images that serve every pod, as the option has them.
    pub(crate) fn allowlist(&self) -> &[String] {
        &self.preloaded_images_verification_allowlist
    }

    /// When images are removed.
    pub(crate) fn policy(&self) -> CollectionPolicy {
        CollectionPolicy {
            high_percent: self.image_gc_high_threshold,
            low_percent: self.image_gc_low_threshold,
            minimum_age: self.minimum_image_ttl_duration,
            maximum_age: self.image_maximum_gc_age,
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::agent::args::parse;
    use std::time::Duration;

    #[test]
    fn the_options_make_the_policy() {
        let policy = parse(&[]).unwrap().images.policy();
        assert_eq!(policy, berth_core::image::collect::CollectionPolicy::default());
        let args = parse(&[
            "--image-gc-high-threshold=70",
            "--image-gc-low-threshold=60",
            "--minimum-image-ttl-duration=0s",
            "--image-maximum-gc-age=12h",
        ]);
        let policy = args.unwrap().images.policy();
        assert_eq!((policy.high_percent, policy.low_percent), (70, 60));
        assert_eq!((policy.minimum_age, policy.maximum_age), (Duration::ZERO, Duration::from_secs(43_200)));
        assert!(parse(&["--image-gc-high-threshold=101"]).is_err());
        assert!(parse(&["--image-maximum-gc-age=1d"]).is_err());
    }
    #[test]
    fn the_verification_of_credentials_is_the_kubelets() {
        use berth_core::image::pull_record::VerificationPolicy;
        let verification = |arguments: &[&str]| parse(arguments).unwrap().images.verification();
        assert_eq!(verification(&[]), Ok(VerificationPolicy::NeverVerifyPreloadedImages));
        let listed = verification(&[
            "--image-pull-credentials-verification-policy=NeverVerifyAllowlistedImages",
            "--preloaded-images-verification-allowlist=a.test/x,b.test/*",
        ]);
        let list = vec!["a.test/x".to_owned(), "b.test/*".to_owned()];
        assert_eq!(listed, Ok(VerificationPolicy::NeverVerifyAllowlistedImages(list)));
        assert!(verification(&["--image-pull-credentials-verification-policy=Sometimes"]).is_err());
        assert!(verification(&["--preloaded-images-verification-allowlist=a.test/x"]).is_err());
    }
}
