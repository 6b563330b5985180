// Command katalogsync is the other side of katalogsync.proto, as a program in Go sees it, for tests.
//
//	katalogsync call ADDRESS register|deregister NAMESPACE POD CONTAINER   prints the code of the answer
//	katalogsync serve                                                      serves on a port that it prints
package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	pb "katalogsync/generated"
)

const deadline = 10 * time.Second

func main() {
	if len(os.Args) == 7 && os.Args[1] == "call" {
		err := call(os.Args[2], os.Args[3], os.Args[4], os.Args[5], os.Args[6])
		fmt.Printf("%s: %s\n", status.Code(err), status.Convert(err).Message())
		return
	}
	if len(os.Args) == 2 && os.Args[1] == "serve" {
		if err := serve(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	fmt.Fprintln(os.Stderr, "expected call ADDRESS VERB NAMESPACE POD CONTAINER, or serve")
	os.Exit(2)
}

func call(address, verb, namespace, pod, container string) error {
	connection, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer connection.Close()
	client := pb.NewKatalogSyncClient(connection)
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	if verb == "register" {
		_, err = client.Register(ctx, &pb.RegisterQuery{Namespace: namespace, PodName: pod, ContainerName: container})
	} else {
		_, err = client.Deregister(ctx, &pb.DeregisterQuery{Namespace: namespace, PodName: pod, ContainerName: container})
	}
	return err
}

// A daemon that knows one pod and whose first answer is katalog-sync's for a pod that is not ready.
type daemon struct {
	pb.UnimplementedKatalogSyncServer
	asked int
}

func (d *daemon) Register(_ context.Context, query *pb.RegisterQuery) (*pb.RegisterResult, error) {
	fmt.Printf("register %s/%s %s\n", query.Namespace, query.PodName, query.ContainerName)
	d.asked++
	if d.asked == 1 {
		return nil, fmt.Errorf("not ready!: %v", nil)
	}
	return &pb.RegisterResult{}, nil
}

func (d *daemon) Deregister(_ context.Context, query *pb.DeregisterQuery) (*pb.DeregisterResult, error) {
	fmt.Printf("deregister %s/%s %s\n", query.Namespace, query.PodName, query.ContainerName)
	if query.PodName == "unknown" {
		return nil, status.Error(codes.NotFound, "no such pod")
	}
	return &pb.DeregisterResult{}, nil
}

func serve() error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(listener.Addr())
	server := grpc.NewServer()
	pb.RegisterKatalogSyncServer(server, &daemon{})
	return server.Serve(listener)
}
