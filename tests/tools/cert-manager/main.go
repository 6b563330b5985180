// The controllers of cert-manager that issue certificates of a CA of their own: cert-manager's main
// package is in a module that is not published.
//
//	cert-manager          runs them, with $KUBECONFIG
//	cert-manager crds     prints the CustomResourceDefinitions
//	cert-manager version
package main

import (
	"context"
	"embed"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"github.com/cert-manager/cert-manager/pkg/controller"
	"github.com/cert-manager/cert-manager/pkg/metrics"
	"github.com/go-logr/logr"
	"k8s.io/utils/clock"

	_ "github.com/cert-manager/cert-manager/pkg/controller/certificaterequests/approver"
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificaterequests/ca"
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificaterequests/selfsigned"
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificates/issuing"
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificates/keymanager"
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificates/readiness"
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificates/requestmanager"
	_ "github.com/cert-manager/cert-manager/pkg/controller/certificates/trigger"
	_ "github.com/cert-manager/cert-manager/pkg/controller/issuers"
	_ "github.com/cert-manager/cert-manager/pkg/issuer/ca"
	_ "github.com/cert-manager/cert-manager/pkg/issuer/selfsigned"
)

// Copied beside this file from the module when it is built.
//
//go:embed crds
var crds embed.FS

func printCRDs() error {
	return fs.WalkDir(crds, ".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		text, err := crds.ReadFile(path)
		fmt.Printf("---\n%s", text)
		return err
	})
}

func run() error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	realClock := clock.RealClock{}
	factory, err := controller.NewContextFactory(ctx, controller.ContextOptions{
		Kubeconfig:         os.Getenv("KUBECONFIG"),
		KubernetesAPIQPS:   100,
		KubernetesAPIBurst: 200,
		Clock:              realClock,
		Metrics:            metrics.New(logr.Discard(), realClock),
		IssuerOptions:      controller.IssuerOptions{ClusterResourceNamespace: "kube-system"},
	})
	if err != nil {
		return err
	}
	shared, err := factory.Build()
	if err != nil {
		return err
	}
	var running sync.WaitGroup
	for name, constructor := range controller.Known() {
		loop, err := constructor(factory)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		running.Add(1)
		go func() {
			defer running.Done()
			if err := loop.Run(2, ctx); err != nil {
				fmt.Fprintln(os.Stderr, name, err)
				stop()
			}
		}()
	}
	shared.SharedInformerFactory.Start(ctx.Done())
	shared.KubeSharedInformerFactory.Start(ctx.Done())
	fmt.Println("started")
	running.Wait()
	return nil
}

func main() {
	command := run
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "crds":
			command = printCRDs
		case "version":
			command = func() error { _, err := fmt.Println("cert-manager"); return err }
		default:
			fmt.Fprintln(os.Stderr, "usage: cert-manager [crds|version]")
			os.Exit(2)
		}
	}
	if err := command(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
