//! A pod of a manifest as processes of this machine: its arguments, its environment and its files
//! are those of the manifest; only paths and addresses are others.

use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{Api, ListParams};
use serde_json::Value;

use crate::folder;
use crate::kubernetes::Kubernetes;
use crate::program::{Program, ProgramOptions};
use crate::tools;

/// An init container or a probe that takes longer hangs.
const EXEC_DEADLINE: Duration = Duration::from_mins(2);

/// The `ConfigMaps` and Secrets of a namespace.
#[derive(Debug, Clone, Default)]
pub struct PodObjects {
    /// `ConfigMaps`, by name and key.
    pub config_maps: BTreeMap<String, BTreeMap<String, Vec<u8>>>,
    /// Secrets, by name and key.
    pub secrets: BTreeMap<String, BTreeMap<String, Vec<u8>>>,
}

impl PodObjects {
    /// Those that a cluster has now.
    pub async fn read(cluster: &Kubernetes, namespace: &str) -> Result<Self> {
        let client = cluster.client()?;
        let all = ListParams::default();
        let mut objects = Self::default();
        for map in Api::<ConfigMap>::namespaced(client.clone(), namespace).list(&all).await? {
            let data = map.data.unwrap_or_default().into_iter();
            let data = data.map(|(key, text)| (key, text.into_bytes())).collect();
            objects.config_maps.insert(map.metadata.name.unwrap_or_default(), data);
        }
        for secret in Api::<Secret>::namespaced(client, namespace).list(&all).await? {
            let data = secret.data.unwrap_or_default().into_iter();
            let data = data.map(|(key, bytes)| (key, bytes.0)).collect();
            objects.secrets.insert(secret.metadata.name.unwrap_or_default(), data);
        }
        Ok(objects)
    }

    /// A value of a Secret as text, trimmed.
    pub fn secret(&self, name: &str, key: &str) -> Result<String> {
        let value = self.secrets.get(name).and_then(|secret| secret.get(key));
        let value = value.with_context(|| format!("no {key} in the Secret {name}"))?;
        Ok(String::from_utf8(value.clone())?.trim().to_owned())
    }
}

/// What a pod has besides its manifest.
#[derive(Debug, Clone)]
pub struct PodOptions {
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its address.
    pub address: Ipv4Addr,
    /// The name of its node.
    pub node: String,
    /// The token of its service account, for volumes that project one.
    pub token: String,
    /// Where its claims and its host's folders are, which outlive it.
    pub storage: PathBuf,
    /// The names of Services, and the addresses that DNS has for them.
    pub names: Vec<(String, Vec<Ipv4Addr>)>,
    /// Further texts of the manifest and what to put in their place.
    pub replacements: Vec<(String, String)>,
}

/// A pod: its folders, and how to run what its manifest says.
#[derive(Debug)]
pub struct Pod {
    spec: Value,
    objects: PodObjects,
    options: PodOptions,
    root: PathBuf,
    /// Counts the versions of its volumes.
    version: u32,
}

// === impl Pod ===

impl Pod {
    /// Makes the folders of a pod of this spec.
    pub fn new(spec: &Value, objects: &PodObjects, options: PodOptions) -> Result<Self> {
        let root = folder::data_folder(&options.name)?;
        // By its name, as in the image.
        let bin = root.join("bin");
        fs::create_dir_all(&bin)?;
        symlink(tools::program("consul")?, bin.join("consul"))?;
        let spec = spec.clone();
        let mut pod = Self { spec, objects: objects.clone(), options, root, version: 0 };
        pod.mount()?;
        Ok(pod)
    }

    /// Its address.
    pub fn address(&self) -> Ipv4Addr {
        self.options.address
    }

    /// The folder where its programs are looked for first: a test may put a stand-in there.
    pub fn bin(&self) -> PathBuf {
        self.root.join("bin")
    }

    /// The folder of a volume.
    pub fn volume(&self, name: &str) -> Result<PathBuf> {
        let volumes = self.spec["volumes"].as_array().into_iter().flatten();
        let volume = volumes.into_iter().find(|it| it["name"] == name);
        let outlives = volume
            .is_none_or(|it| it["hostPath"].is_object() || it["persistentVolumeClaim"].is_object());
        let at = if outlives { &self.options.storage } else { &self.root };
        let path = at.join("volumes").join(name);
        fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
        Ok(path)
    }

    /// Takes up changed objects, as a kubelet does: each volume's files change at one moment.
    pub fn update(&mut self, objects: &PodObjects) -> Result<()> {
        self.objects = objects.clone();
        self.mount()
    }

    /// Runs its init containers, but for sidecars, one after the other.
    pub async fn init(&self) -> Result<()> {
        for container in self.spec["initContainers"].as_array().into_iter().flatten() {
            // What root does there is done.
            let root = container["securityContext"]["runAsUser"] == 0;
            if container["restartPolicy"] == "Always" || root {
                continue;
            }
            let name = container["name"].as_str().unwrap_or_default();
            let program = self.start(name).await?;
            program.wait_for_code(0, EXEC_DEADLINE).await?;
        }
        Ok(())
    }

    /// Starts the process of a container.
    pub async fn start(&self, container: &str) -> Result<Program> {
        let of = self.container(container)?;
        let mut words = strings(&of["command"]);
        words.extend(strings(&of["args"]));
        let program = self.options.name.clone();
        Program::start(&format!("{program}-{container}"), self.command(of, &words)?).await
    }

    /// Runs a command in a container to its end, as a probe of `exec` or a hook.
    pub async fn exec(&self, container: &str, action: &Value) -> Result<Program> {
        let words = strings(&action["exec"]["command"]);
        ensure!(!words.is_empty(), "no command in {action}");
        let command = self.command(self.container(container)?, &words)?;
        let program = Program::start(&format!("{}-exec", self.options.name), command).await?;
        program.wait(EXEC_DEADLINE).await?;
        Ok(program)
    }

    /// A command of the test's own, with the environment and the paths of a container.
    pub fn command_in(&self, container: &str, words: &[&str]) -> Result<ProgramOptions> {
        let words: Vec<String> = words.iter().map(ToString::to_string).collect();
        self.command(self.container(container)?, &words)
    }

    /// A container of the manifest.
    pub fn container(&self, name: &str) -> Result<&Value> {
        self.containers()
            .find(|it| it["name"] == name)
            .with_context(|| format!("no container {name}"))
    }

    fn containers(&self) -> impl Iterator<Item = &Value> {
        let lists = [&self.spec["containers"], &self.spec["initContainers"]];
        lists.into_iter().filter_map(Value::as_array).flatten()
    }

    fn command(&self, container: &Value, words: &[String]) -> Result<ProgramOptions> {
        let variables = self.environment(container)?;
        let (program, arguments) = words.split_first().context("a container without a command")?;
        let program = match program.as_str() {
            "consul" => self.bin().join("consul"),
            path => PathBuf::from(path),
        };
        let mut options = ProgramOptions::new(program);
        for argument in arguments {
            let argument = expand(argument, &variables);
            for argument in self.resolved(&argument) {
                options = options.arg(self.real(&argument)?);
            }
        }
        let path = std::env::var("PATH").unwrap_or_default();
        options = options.env("PATH", format!("{}:{path}", self.bin().display()));
        for (name, value) in &variables {
            options = options.env(name, self.real(value)?);
        }
        Ok(options)
    }

    /// An argument that joins a name joins all of its addresses.
    fn resolved(&self, argument: &str) -> Vec<String> {
        let Some(("-retry-join", name)) = argument.split_once('=') else {
            return vec![argument.to_owned()];
        };
        match self.options.names.iter().find(|(known, _)| known == name) {
            Some((_, addresses)) => {
                addresses.iter().map(|it| format!("-retry-join={it}")).collect()
            }
            None => vec![argument.to_owned()],
        }
    }

    fn environment(&self, container: &Value) -> Result<BTreeMap<String, String>> {
        let mut variables = BTreeMap::new();
        for source in container["envFrom"].as_array().into_iter().flatten() {
            let name = source["configMapRef"]["name"].as_str().context("envFrom of what?")?;
            let map = self.objects.config_maps.get(name);
            for (key, value) in map.with_context(|| format!("no ConfigMap {name}"))? {
                variables.insert(key.clone(), String::from_utf8(value.clone())?);
            }
        }
        for variable in container["env"].as_array().into_iter().flatten() {
            let name = variable["name"].as_str().context("a variable without a name")?;
            let value = match variable["valueFrom"]["fieldRef"]["fieldPath"].as_str() {
                Some("metadata.name") => self.options.name.clone(),
                Some("status.podIP" | "status.hostIP") => self.options.address.to_string(),
                Some("metadata.namespace") => self.options.namespace.clone(),
                Some("spec.nodeName") => self.options.node.clone(),
                Some(other) => bail!("{name}: a pod's {other} is not known here"),
                None => {
                    let value = variable["value"].as_str().context("a variable without a value")?;
                    // Only of variables before it, as the kubelet does.
                    expand(value, &variables)
                }
            };
            variables.insert(name.to_owned(), value);
        }
        Ok(variables)
    }

    /// A text of the manifest with the real paths and addresses.
    fn real(&self, text: &str) -> Result<String> {
        let mut replaced: Vec<(String, String)> = Vec::new();
        for (name, addresses) in &self.options.names {
            if let Some(address) = addresses.first() {
                replaced.push((format!("https://{name}:"), format!("https://{address}:")));
                let all: Vec<_> = addresses.iter().map(|it| format!("\"{it}\"")).collect();
                replaced.push((format!("\"{name}\""), all.join(", ")));
            }
        }
        // Of all containers, which mount one volume alike: a script is of no container.
        let containers = self.containers();
        let mounts = containers.filter_map(|it| it["volumeMounts"].as_array()).flatten();
        for mount in mounts {
            let path = mount["mountPath"].as_str().context("a mount without a path")?;
            let name = mount["name"].as_str().context("a mount without a name")?;
            if path != "/tmp" {
                replaced.push((path.to_owned(), self.volume(name)?.display().to_string()));
            }
        }
        replaced.extend(self.options.replacements.clone());
        Ok(replace_all(text, &mut replaced))
    }

    /// Writes what the volumes have.
    fn mount(&mut self) -> Result<()> {
        self.version += 1;
        for volume in self.spec["volumes"].as_array().into_iter().flatten() {
            let files = self.files(volume)?;
            if files.is_empty() {
                continue;
            }
            let name = volume["name"].as_str().context("a volume without a name")?;
            let folder = self.volume(name)?;
            let version = format!("..{}", self.version);
            fs::create_dir_all(folder.join(&version))?;
            for (path, bytes) in &files {
                let bytes = match String::from_utf8(bytes.clone()) {
                    Ok(text) => self.real(&text)?.into_bytes(),
                    Err(error) => error.into_bytes(),
                };
                fs::write(folder.join(&version).join(path), bytes)?;
            }
            swap(&folder, &version, files.keys())?;
        }
        Ok(())
    }

    /// The files of a volume that is made of objects.
    fn files(&self, volume: &Value) -> Result<BTreeMap<String, Vec<u8>>> {
        let mut files = BTreeMap::new();
        if let Some(sources) = volume["projected"]["sources"].as_array() {
            for source in sources {
                files.extend(self.files_of(source)?);
            }
        } else {
            files.extend(self.files_of(volume)?);
        }
        Ok(files)
    }

    fn files_of(&self, source: &Value) -> Result<BTreeMap<String, Vec<u8>>> {
        let (of, all) = if source["configMap"].is_object() {
            (&source["configMap"], &self.objects.config_maps)
        } else if source["secret"].is_object() {
            (&source["secret"], &self.objects.secrets)
        } else if let Some(path) = source["serviceAccountToken"]["path"].as_str() {
            return Ok([(path.to_owned(), self.options.token.clone().into_bytes())].into());
        } else {
            return Ok(BTreeMap::new());
        };
        let name =
            of["name"].as_str().or(of["secretName"].as_str()).context("a volume of what?")?;
        let Some(data) = all.get(name) else {
            ensure!(of["optional"] == true, "{} waits for {name}", self.options.name);
            return Ok(BTreeMap::new());
        };
        let Some(items) = of["items"].as_array() else {
            return Ok(data.clone());
        };
        let item = |item: &Value| {
            let (key, path) = (item["key"].as_str()?, item["path"].as_str()?);
            Some((path.to_owned(), data.get(key)?.clone()))
        };
        let files = items.iter().map(|it| item(it).with_context(|| format!("{name} has no {it}")));
        files.collect()
    }
}

/// Makes a version the one that is seen, as a kubelet does: a link changes, and the former
/// version goes.
fn swap<'a>(folder: &Path, version: &str, names: impl Iterator<Item = &'a String>) -> Result<()> {
    let data = folder.join("..data");
    let former = fs::read_link(&data).ok();
    let next = folder.join("..data_tmp");
    symlink(version, &next)?;
    fs::rename(&next, &data)?;
    for name in names {
        let link = folder.join(name);
        if !link.is_symlink() {
            symlink(Path::new("..data").join(name), link)?;
        }
    }
    if let Some(former) = former {
        fs::remove_dir_all(folder.join(former))?;
    }
    Ok(())
}

fn strings(list: &Value) -> Vec<String> {
    let items = list.as_array().into_iter().flatten();
    items.filter_map(Value::as_str).map(ToOwned::to_owned).collect()
}

/// `$(NAME)` becomes the variable's value, as in a pod.
fn expand(text: &str, variables: &BTreeMap<String, String>) -> String {
    let expand = |text: String, (name, value): (&String, &String)| {
        text.replace(&format!("$({name})"), value)
    };
    variables.iter().fold(text.to_owned(), expand)
}

/// Replaces in one pass, the longest text first: what was put in is not looked at again.
fn replace_all(text: &str, replaced: &mut [(String, String)]) -> String {
    replaced.sort_by_key(|(from, _)| std::cmp::Reverse(from.len()));
    let mut rest = text;
    let mut result = String::with_capacity(text.len());
    while let Some(next) = rest.chars().next() {
        if let Some((from, to)) = replaced.iter().find(|(from, _)| rest.starts_with(&**from)) {
            result.push_str(to);
            rest = &rest[from.len()..];
        } else {
            result.push(next);
            rest = &rest[next.len_utf8()..];
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_put_in_is_not_replaced_again() {
        let pair = |from: &str, to: &str| (from.to_owned(), to.to_owned());
        let mut replaced = [pair("/a", "/a/b"), pair("/a/long", "/c")];
        assert_eq!(replace_all("/a/x /a/long/y", &mut replaced), "/a/b/x /c/y");
    }

    #[test]
    fn a_swapped_volume_has_the_new_files_behind_the_old_names() {
        let folder = tempfile::tempdir().unwrap();
        for (version, text) in [("..1", "old"), ("..2", "new")] {
            fs::create_dir(folder.path().join(version)).unwrap();
            fs::write(folder.path().join(version).join("ca.crt"), text).unwrap();
            swap(folder.path(), version, [&"ca.crt".to_owned()].into_iter()).unwrap();
        }
        assert_eq!(fs::read_to_string(folder.path().join("ca.crt")).unwrap(), "new");
        assert!(!folder.path().join("..1").exists());
    }
}
