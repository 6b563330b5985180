//! A headless Chromium by the `WebDriver` protocol: the few requests that the tests of the page make.
//! The crates for it bring a second HTTP client and a second URL parser along.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use kube_consul_stack::{Port, Program, ProgramOptions, eventually, install_provider};
use serde_json::{Value, json};

use super::DEADLINE;

/// How long a browser may take to start beside other work.
const START: Duration = Duration::from_mins(1);

/// A browser with one window.
pub struct Browser {
    driver: Program,
    _port: Port,
    client: reqwest::Client,
    session: String,
}

impl Browser {
    /// Starts one; `None` where there is none, with the way to get it.
    pub async fn start() -> Result<Option<Self>> {
        let (Some(chromium), Some(driver)) = (which("chromium"), which("chromedriver")) else {
            let how = "'chromium' or 'chromedriver' is not on PATH (Debian, Ubuntu: apt-get install \
                       chromium chromium-driver)";
            // A developer's machine may have none; CI has.
            ensure!(std::env::var_os("CI").is_none(), "{how}");
            println!("skipped: {how}");
            return Ok(None);
        };
        install_provider();
        let port = Port::pick()?;
        let options = ProgramOptions::new(driver).arg(format!("--port={}", port.number()));
        let driver = Program::start("chromedriver", options).await?;
        let client =
            reqwest::Client::builder().no_proxy().tls_certs_only([]).timeout(START).build()?;
        let base = format!("http://127.0.0.1:{}", port.number());
        eventually(START, || async {
            let answer = client.get(format!("{base}/status")).send().await?;
            ensure!(answer.status().is_success(), "{}", answer.status());
            Ok(())
        })
        .await?;
        let arguments =
            ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"];
        let wanted = json!({"capabilities": {"alwaysMatch": {
            "browserName": "chrome",
            "goog:loggingPrefs": {"browser": "ALL"},
            "goog:chromeOptions": {"binary": chromium, "args": arguments},
        }}});
        let answer = answer(client.post(format!("{base}/session")).json(&wanted)).await?;
        let id = answer["sessionId"].as_str().context("no session")?;
        let session = format!("{base}/session/{id}");
        Ok(Some(Self { driver, _port: port, client, session }))
    }

    async fn post(&self, command: &str, body: &Value) -> Result<Value> {
        answer(self.client.post(format!("{}/{command}", self.session)).json(body)).await
    }

    /// Opens a page.
    pub async fn open(&self, url: &str) -> Result<()> {
        self.post("url", &json!({"url": url})).await.map(drop)
    }

    /// What a function body gives in the page.
    pub async fn run(&self, script: &str) -> Result<Value> {
        self.post("execute/sync", &json!({"script": script, "args": []})).await
    }

    /// Waits until an expression is true in the page.
    pub async fn wait_for(&self, condition: &str) -> Result<()> {
        eventually(DEADLINE, || async {
            let met = self.run(&format!("return Boolean({condition})")).await?;
            ensure!(met == Value::Bool(true), "not so in the page: {condition}");
            Ok(())
        })
        .await
    }

    /// Presses keys, one after the other, where the focus is.
    pub async fn press(&self, keys: &str) -> Result<()> {
        let keys = keys.chars().flat_map(|key| {
            ["keyDown", "keyUp"].map(|kind| json!({"type": kind, "value": key.to_string()}))
        });
        let keys: Vec<Value> = keys.collect();
        let actions = json!([{"type": "key", "id": "keyboard", "actions": keys}]);
        self.post("actions", &json!({"actions": actions})).await.map(drop)
    }

    /// The window's width, and whether a dark page is preferred.
    pub async fn appear(&self, width: u16, dark: bool) -> Result<()> {
        let metrics =
            json!({"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": false});
        self.devtools("Emulation.setDeviceMetricsOverride", metrics).await?;
        let scheme = if dark { "dark" } else { "light" };
        let media = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.devtools("Emulation.setEmulatedMedia", media).await
    }

    async fn devtools(&self, command: &str, parameters: Value) -> Result<()> {
        let body = json!({"cmd": command, "params": parameters});
        self.post("goog/cdp/execute", &body).await.map(drop)
    }

    /// What the page and the browser complained of since the last time.
    pub async fn complaints(&self) -> Result<Vec<String>> {
        let log = self.post("se/log", &json!({"type": "browser"})).await?;
        let entries = log.as_array().context("no log")?.iter();
        let bad = entries.filter(|it| it["level"] == "SEVERE" || it["level"] == "WARNING");
        Ok(bad.map(|it| it["message"].to_string()).collect())
    }

    /// Writes what a person would see, as `<target>/page/<name>.png`.
    pub async fn screenshot(&self, name: &str) -> Result<PathBuf> {
        let picture = answer(self.client.get(format!("{}/screenshot", self.session))).await?;
        let picture = picture.as_str().context("no picture")?;
        let picture = base64::engine::general_purpose::STANDARD.decode(picture)?;
        let program = Path::new(env!("CARGO_BIN_EXE_kube-consul"));
        let folder = program.parent().context("no folder")?.with_file_name("page");
        std::fs::create_dir_all(&folder)?;
        let path = folder.join(name).with_extension("png");
        std::fs::write(&path, picture)?;
        Ok(path)
    }

    /// Ends it.
    pub async fn stop(self) -> Result<()> {
        answer(self.client.delete(&self.session)).await?;
        self.driver.stop(DEADLINE).await
    }
}

/// The value of an answer.
async fn answer(request: reqwest::RequestBuilder) -> Result<Value> {
    let answer = request.send().await?;
    let status = answer.status();
    let mut body: Value = answer.json().await?;
    ensure!(status.is_success(), "{status}: {}", body["value"]["message"]);
    Ok(body["value"].take())
}

/// The program of this name on PATH.
fn which(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file())
}
